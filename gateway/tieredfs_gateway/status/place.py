"""What a token for the status page names, where one for a dataset names its source: a place that no dataset can have."""

from typing import Final

SOURCE: Final = ".tieredfs/status"
