"""The command line. `main` is the console script."""
