"""`python -m tieredfs`: the command line, where the console script is not on the path."""

import sys

from tieredfs.cli import main

sys.exit(main())
