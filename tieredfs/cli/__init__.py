"""The command line. `main` is the console script."""

from tieredfs.cli.app import main

__all__ = ["main"]
