"""The snippets of README's "Drop-ins" run as they stand, on a volume of their own."""

import re
from pathlib import Path

import pytest

from tieredfs_client.filesystem import TieredFileSystem

README = (Path(__file__).parents[2] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README.partition("## Drop-ins")[2].partition("\n## ")[0], re.DOTALL)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_runs(number: int, url: str, fs: TieredFileSystem) -> None:
    assert "/data/volume.db" in SNIPPETS[number]
    text = SNIPPETS[number].replace("/data/volume.db", url.removeprefix("sqlite://"))
    exec(compile(text, f"README snippet {number + 1}", "exec"), {"__name__": "snippet"})
    assert fs.find("") or "Trainer" in text, "it wrote something"


def test_there_are_as_many_snippets_as_libraries() -> None:
    assert len(SNIPPETS) == 3
