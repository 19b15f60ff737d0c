"""Who deletes and who tags, sweeps or looks at the same checkpoint in the same moment: each order ends well.

The moments are made by a volume that does something of somebody else's just before one of our calls.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tieredfs.errors import InvalidRequestError, NotFoundError
from tieredfs.host import local_host
from tieredfs.volume import FileSystem
from tieredfs_client.checkpoint import CheckpointManager
from tieredfs_client.checkpoint.catalog import Catalog
from tieredfs_client.checkpoint.keeping import Keeper
from tieredfs_client.checkpoint.names import CheckpointName, RunPaths
from tieredfs_client.checkpoint.retention import Retention

RUN = "runs/race"
PATHS = RunPaths.of(RUN)
FIRST = CheckpointName(1)


class Interleaved:
    """A volume. `before[method]` runs once, just before the method's next call."""

    def __init__(self, volume: FileSystem) -> None:
        self._volume = volume
        self.before: dict[str, Callable[..., object]] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._volume, name)
        if name not in self.before:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self.before.pop(name)(*arguments)
            return found(*arguments, **options)

        return call


@pytest.fixture
def steps(volume: FileSystem) -> dict[int, np.ndarray[Any, Any]]:
    states = {step: np.full(1000, float(step)) for step in (1, 2, 3)}
    with CheckpointManager(volume, RUN) as manager:
        for step, state in states.items():
            manager.save(step, state)
    return states


def catalog_of(volume: Any) -> Catalog:
    return Catalog(volume, local_host(), PATHS)


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize("deletion", ["prune", "rm"])
def test_a_tag_that_was_set_while_its_checkpoint_was_being_deleted_keeps_it(volume: FileSystem, deletion: str) -> None:
    between = Interleaved(volume)
    between.before["rename"] = lambda *_: catalog_of(volume).set_tag("good", 1)
    keeper = Keeper(catalog_of(between))
    if deletion == "prune":
        assert [name.step for name in keeper.prune(Retention(keep_last=1))] == [2]
    else:
        with pytest.raises(Exception, match="just tagged"):
            keeper.delete(1)
    assert "rename" not in between.before
    with CheckpointManager(volume, RUN) as manager:
        assert manager.load("good")[0] == 1.0


@pytest.mark.usefixtures("steps")
def test_a_tag_is_not_set_on_what_was_just_deleted(volume: FileSystem) -> None:
    between = Interleaved(volume)
    between.before["make_directories"] = lambda *_: Keeper(catalog_of(volume)).delete(1)
    with pytest.raises(NotFoundError):
        catalog_of(between).set_tag("good", 1)
    assert catalog_of(volume).tags() == {}


@pytest.mark.usefixtures("steps")
def test_what_is_being_swept_cannot_be_put_back_in_part(volume: FileSystem) -> None:
    hidden = PATHS.trash + f"/{FIRST}-00000000".encode()
    volume.make_directories(PATHS.trash)
    volume.rename(PATHS.checkpoint(FIRST), hidden, replace=False)
    between = Interleaved(volume)

    def put_back(*_: object) -> None:
        with pytest.raises(NotFoundError):
            volume.rename(hidden, PATHS.checkpoint(FIRST), replace=False)

    between.before["remove_tree"] = put_back
    catalog_of(between).sweep()
    assert between.before == {}
    assert [one.name.step for one in catalog_of(volume).checkpoints()] == [2, 3]
    assert list(catalog_of(volume).listed(PATHS.trash)) == []


@pytest.mark.usefixtures("steps")
def test_a_deletion_that_somebody_swept_is_done(volume: FileSystem) -> None:
    between = Interleaved(volume)
    between.before["remove_tree"] = lambda *_: catalog_of(volume).sweep()
    assert catalog_of(between).delete(FIRST)
    assert between.before == {}


@pytest.mark.usefixtures("steps")
def test_a_tag_that_is_taken_away_while_tags_are_read_is_none(volume: FileSystem) -> None:
    catalog_of(volume).set_tag("good", 1)
    between = Interleaved(volume)
    between.before["open"] = lambda *_: catalog_of(volume).remove_tag("good")
    assert catalog_of(between).tags() == {}
    assert between.before == {}


@pytest.mark.usefixtures("steps")
def test_a_new_tag_is_no_number(volume: FileSystem) -> None:
    with pytest.raises(InvalidRequestError, match="taken for a step"):
        catalog_of(volume).set_tag("5", 1)


@pytest.mark.usefixtures("steps")
def test_of_two_that_delete_the_last_two_one_is_told(volume: FileSystem) -> None:
    Keeper(catalog_of(volume)).delete(1)
    between = Interleaved(volume)
    between.before["rename"] = lambda *_: Keeper(catalog_of(volume)).delete(2)
    with pytest.raises(InvalidRequestError, match="the last checkpoint"):
        Keeper(catalog_of(between)).delete(3)
    assert between.before == {}
    assert [one.name.step for one in catalog_of(volume).checkpoints()] == [3]


@pytest.mark.usefixtures("steps")
def test_what_pruning_would_leave_is_there_when_it_deletes(volume: FileSystem) -> None:
    Keeper(catalog_of(volume)).delete(1)
    between = Interleaved(volume)
    between.before["rename"] = lambda *_: Keeper(catalog_of(volume)).delete(3)
    assert Keeper(catalog_of(between)).prune(Retention(keep_last=1)) == []
    assert [one.name.step for one in catalog_of(volume).checkpoints()] == [2]


@pytest.mark.usefixtures("steps")
def test_many_that_delete_at_once_leave_one(volume: FileSystem) -> None:
    def deletes(step: int) -> bool:
        try:
            Keeper(catalog_of(volume)).delete(step)
        except InvalidRequestError:
            return False
        return True

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(deletes, (1, 2, 3))) == [False, True, True]
    assert len(catalog_of(volume).checkpoints()) == 1
