"""The house rules that a linter cannot hold: sizes, names, and documents that say what the code says."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tieredfs.host import crash

ROOT = Path(__file__).parent.parent
TREES = ("tieredfs", "gateway", "clients", "bench")
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 600
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}
CRASH_COLUMNS = 5


def modules() -> list[Path]:
    return sorted(path for tree in TREES for path in (ROOT / tree).rglob("*.py"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MODULE_LINES_MAX
    lengths = {function.name: (function.end_lineno or 0) - function.lineno + 1 for function in functions(path)}
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES_MAX} == {}


def test_no_module_has_a_name_that_says_nothing() -> None:
    names = {part for path in modules() for part in path.relative_to(ROOT).with_suffix("").parts}
    assert names & VAGUE_NAMES == set()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_opens_with_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


IMPORT_ROOTS = {"tieredfs": ROOT, "tieredfs_client": ROOT / "clients", "tieredfs_gateway": ROOT / "gateway"}


def imports_between_modules() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports: at the top, in functions, and by `import_module("...")`."""
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for package, root in IMPORT_ROOTS.items()
        for path in (root / package).rglob("*.py")
        if path.name != "__init__.py"  # a package's face only hands names on
    }
    return {module: set(imported_by(path)) & (files.keys() - {module}) for module, path in files.items()}


def imported_by(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            named = (argument.value for argument in node.args if isinstance(argument, ast.Constant))
            yield from (name for name in named if isinstance(name, str))


def test_no_two_modules_import_each_other_however_far_around() -> None:
    from graphlib import TopologicalSorter

    imports = imports_between_modules()
    assert len(imports) > 200
    assert list(TopologicalSorter(imports).static_order())  # a circle is a CycleError that names it


def test_the_architecture_names_every_package() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    packages = sorted(path.parent.name for path in (ROOT / "tieredfs").glob("*/__init__.py"))
    assert [name for name in packages if f"`{name}`" not in text and f"tieredfs.{name}" not in text] == []


def crash_rows() -> list[list[str]]:
    lines = (ROOT / "CRASHES.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return [[cell for cell in row if cell] for row in rows]


def test_the_crash_table_has_one_row_per_crash_point_in_order() -> None:
    rows = crash_rows()
    assert tuple(row[0].strip("`") for row in rows) == crash.POINTS
    assert {row[0]: len(row) for row in rows if len(row) != CRASH_COLUMNS} == {}, "an empty cell"


def functions_named(cell: str) -> list[tuple[str, str]]:
    """File and function of each test that a row names; no function: the whole file."""
    return [(file, name) for file, _, name in (text.partition("::") for text in re.findall(r"`([^`]+)`", cell))]


@pytest.mark.parametrize("row", crash_rows(), ids=lambda row: row[0].strip("`"))
def test_the_tests_of_a_crash_point_exist_and_one_names_it(row: list[str]) -> None:
    point, named = row[0].strip("`"), functions_named(row[-1])
    texts = {file: (ROOT / file).read_text() for file, _ in named}
    assert named
    assert [name for file, name in named if name and f"def {name}(" not in texts[file]] == []
    assert any(f'"{point}"' in text for text in texts.values()), "none of these files dies there"


def calls_of_here() -> set[str]:
    """The names that the code dies at, read from its source."""
    found = set()
    for path in modules():
        found |= set(re.findall(r"crash\.here\(\"([^\"]+)\"\)", path.read_text()))
    return found


def test_the_crash_points_in_the_code_are_those_that_are_known() -> None:
    assert calls_of_here() == set(crash.POINTS)


def test_lock_files_pin_every_line_exactly() -> None:
    for lock in sorted((ROOT / "requirements").glob("*.txt")):
        pins = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
        assert pins
        assert [line for line in pins if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == [], lock.name


def test_what_the_project_declares_is_pinned() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(name for names in project["optional-dependencies"].values() for name in names),
    ]
    pinned = {
        line.partition("==")[0]
        for lock in (ROOT / "requirements").glob("*.txt")
        for line in lock.read_text().splitlines()
    }
    assert {re.split(r"[<>=]", name)[0] for name in declared} - pinned == set()


DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def names_of(path: Path) -> set[str]:
    """What a link may follow `#` with: headings, in small letters, words joined by hyphens, punctuation left out."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_between_the_documents_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    for link in [link for link in links if "://" not in link]:
        file, _, name = link.partition("#")
        target = (document.parent / file).resolve() if file else document
        assert target.exists(), link
        assert not name or name in names_of(target), link


def test_the_readme_leads_to_every_document() -> None:
    text = (ROOT / "README.md").read_text()
    assert [path.name for path in DOCUMENTS if f"]({path.relative_to(ROOT)})" not in text] == ["README.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_python_snippet_is_python(document: Path) -> None:
    for snippet in re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL):
        compile(snippet, document.name, "exec")


def test_the_documents_name_every_verb() -> None:
    from tieredfs.cli import disk_verbs, quota_verbs, snapshot_verbs
    from tieredfs.cli.app import app

    text = (ROOT / "docs" / "commands.md").read_text()
    names = [command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands]
    assert len(names) > 10
    assert [name for name in names if f"tieredfs {name}" not in text] == []
    for group, below in (("disk", disk_verbs), ("quota", quota_verbs), ("snapshot", snapshot_verbs)):
        commands = below.verbs.registered_commands
        names = [command.name or getattr(command.callback, "__name__", "") for command in commands]
        assert [name for name in names if f"tieredfs {group} {name}" not in text] == []


def test_the_documents_name_no_limit_that_is_not_so() -> None:
    from tieredfs import limits

    text = "\n".join(path.read_text() for path in DOCUMENTS)
    assert f"Names of {limits.NAME_BYTES_MAX} bytes, paths of {limits.PATH_BYTES_MAX:,}" in text
    assert f"{limits.LINK_COUNT_MAX:,} links" in text
    assert f"at most {limits.QUOTA_MOVED_MAX:,} entries" in text
    assert f"{limits.CODE_WIDTH_MAX} chunks to a block" in text
    assert f"{limits.DISKS_MAX:,} disks" in text
    assert f"at most {limits.BLOCK_BYTES_MAX // limits.MIB} MiB" in text
    assert f"{limits.DRAIN_DELAY_S:.0f} s after close (small files {limits.PACK_DELAY_S:.0f} s" in text
    assert f"as it is after {limits.DRAIN_DEADLINE_S:.0f} s" in text
