"""How long a read waits: less once siblings have answered, and to the end where nothing can be done without."""

import pytest

from tieredfs.core.patience import Patience

PATIENCE = Patience(sibling_s=1.0, first_s=2.0, last_s=3.0)


@pytest.mark.parametrize(
    ("answered", "awaited", "spare", "waits_s"),
    [
        (0, 4, 2, 3.0),  # four of 4+2: two can be done without, not four
        (1, 3, 2, 3.0),
        (2, 2, 2, 1.0),
        (3, 1, 2, 1.0),
        (0, 1, 2, 2.0),  # a range within one chunk
        (0, 1, 0, 3.0),  # two disks are gone already
        (3, 1, -1, 3.0),
    ],
)
def test_the_patience_of_a_read(answered: int, awaited: int, spare: int, waits_s: float) -> None:
    assert PATIENCE.with_(answered=answered, awaited=awaited, spare=spare) == waits_s
