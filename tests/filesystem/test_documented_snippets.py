"""The snippets of docs/drop-ins.md run as they stand, on a volume of their own."""

import re
from pathlib import Path

import pytest

from tieredfs_client.filesystem import TieredFileSystem

DOCUMENT = (Path(__file__).parents[2] / "docs" / "drop-ins.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_runs(number: int, url: str, fs: TieredFileSystem) -> None:
    assert "/data/volume.db" in SNIPPETS[number]
    text = SNIPPETS[number].replace("/data/volume.db", url.removeprefix("sqlite://"))
    exec(compile(text, f"snippet {number + 1}", "exec"), {"__name__": "snippet"})
    assert fs.find("") or "Trainer" in text, "it wrote something"


def test_there_are_as_many_snippets_as_libraries() -> None:
    assert len(SNIPPETS) == 3
