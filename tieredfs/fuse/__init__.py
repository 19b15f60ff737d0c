"""The kernel front end: one set of operations, two drivers."""
