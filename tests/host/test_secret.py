"""Where secrets come from."""

from pathlib import Path

import pytest

from tieredfs.errors import ConfigurationError
from tieredfs.host.secret import read_secret

SECRET = b"sixteen bytes and"


def test_the_file_goes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    monkeypatch.setenv("A_SECRET", "not this one, however long")
    monkeypatch.setenv("A_SECRET_FILE", str(tmp_path / "secret"))
    assert read_secret("A_SECRET", bytes_min=16) == SECRET


def test_a_variable_that_is_empty_names_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", SECRET.decode())
    monkeypatch.setenv("A_SECRET_FILE", "")
    assert read_secret("A_SECRET", bytes_min=16) == SECRET


@pytest.mark.parametrize(("value", "said"), [("", "a secret is needed"), ("short", "5 bytes; it needs at least 16")])
def test_none_and_short_ones_are_refused(monkeypatch: pytest.MonkeyPatch, value: str, said: str) -> None:
    monkeypatch.setenv("A_SECRET", value)
    monkeypatch.delenv("A_SECRET_FILE", raising=False)
    with pytest.raises(ConfigurationError, match=said):
        read_secret("A_SECRET", bytes_min=16)
