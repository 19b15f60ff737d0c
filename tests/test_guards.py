"""The guards of `conftest.py` themselves: what they must catch is caught, in a pytest of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run_tests(directory: Path, source: str) -> subprocess.CompletedProcess[str]:
    """Run `source` as the only test file below a copy of our conftest."""
    shutil.copy(HERE / "conftest.py", directory)
    (directory / "test_inner.py").write_text(source)
    settings = HERE.parent / "pyproject.toml"
    command = [sys.executable, "-m", "pytest", "-c", str(settings), "--rootdir", str(directory), str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, cwd=directory)


def test_an_unexpected_warning_fails_and_an_expected_one_does_not(tmp_path: Path) -> None:
    result = run_tests(
        tmp_path,
        "import logging, pytest\n"
        "def test_loud(): logging.getLogger('tieredfs.block').warning('disk %d is slow', 3)\n"
        "@pytest.mark.allows_warnings('disk . is slow')\n"
        "def test_allowed(): logging.getLogger('tieredfs.block').warning('disk 3 is slow')\n"
        "def test_quiet(): logging.getLogger('tieredfs.block').info('all well')\n",
    )
    assert result.returncode == 1, result.stdout
    assert "3 passed, 1 error" in result.stdout
    assert "WARNING tieredfs.block: disk 3 is slow" in result.stdout


def test_programs_load_compiled_modules() -> None:
    program = "import tieredfs, sys; print(sys.dont_write_bytecode, tieredfs.__cached__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    written, cached = done.stdout.split()
    assert written == "False"
    assert Path(cached).exists() or not os.access(HERE, os.W_OK)


def is_running(pid: int) -> bool:
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def test_a_process_that_detached_itself_is_found_and_ended(tmp_path: Path) -> None:
    result = run_tests(
        tmp_path,
        "import subprocess, pathlib, time\n"
        "def test_leaves_a_daemon():\n"
        "    shell = 'setsid sleep 600 >/dev/null 2>&1 & echo $!'\n"
        "    out = subprocess.run(['sh', '-c', shell], capture_output=True, text=True, check=True).stdout\n"
        "    program = pathlib.Path(f'/proc/{int(out)}/cmdline')\n"
        "    while not program.read_bytes().startswith(b'sleep'):\n"
        "        time.sleep(0.01)\n"
        "    pathlib.Path('pid').write_text(out)\n",
    )
    assert result.returncode == 1, result.stdout
    assert "left behind" in result.stdout
    pid = int((tmp_path / "pid").read_text())
    assert f"process {pid}: sleep 600" in result.stdout
    assert not is_running(pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_mount_below_the_session_directory_is_found_and_taken_away(tmp_path: Path) -> None:
    result = run_tests(
        tmp_path,
        "import subprocess\n"
        "def test_leaves_a_mount(tmp_path):\n"
        "    subprocess.run(['mount', '-t', 'tmpfs', 'left', str(tmp_path)], check=True, timeout=10)\n",
    )
    if "permission denied" in result.stdout:
        pytest.skip("this root may not mount")
    assert result.returncode == 1, result.stdout
    assert "mount at " in result.stdout
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_a_clean_session_passes_and_leaves_no_directory(tmp_path: Path) -> None:
    result = run_tests(
        tmp_path, "import pathlib\ndef test_fine(tmp_path): pathlib.Path('where').write_text(str(tmp_path))\n"
    )
    assert result.returncode == 0, result.stdout
    assert not Path((tmp_path / "where").read_text()).exists()
