"""The house has floors: packages import down only, and no files import each other in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "wsss_core"
FLOORS = (
    ("__main__",),
    ("cli",),
    ("stages",),
    ("report",),
    ("plan_table", "results", "plan", "chain", "revisions"),
    ("engine",),
    ("systems",),
    ("refine",),
    ("evaluate",),
    ("losses",),
    ("nn",),
    ("data",),
    ("processes", "stage", "devices", "files", "store"),
    ("config",),
    ("errors",),
)
"""From the top. A floor is a package, or modules that belong together."""
FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}
FILES = {
    ".".join(("wsss_core", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports(module: str) -> set[str]:
    """The files of the package that a file names in its imports, those inside functions and under TYPE_CHECKING too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            found |= {name if (name := f"{node.module}.{alias.name}") in FILES else str(node.module) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & FILES.keys()


def floor(module: str) -> int:
    return FLOOR[module.split(".")[1]]


def test_every_module_has_its_floor() -> None:
    assert {module.split(".")[1] for module in FILES if module != "wsss_core"} == FLOOR.keys()


@pytest.mark.parametrize("module", sorted(FILES.keys() - {"wsss_core"}))
def test_no_import_runs_up(module: str) -> None:
    assert [name for name in imports(module) if name != "wsss_core" and floor(name) < floor(module)] == []


def test_no_circle_of_files() -> None:
    try:
        TopologicalSorter({module: imports(module) - {module} for module in FILES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
