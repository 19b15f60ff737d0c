"""The name, file and block layers over a key-value engine."""
