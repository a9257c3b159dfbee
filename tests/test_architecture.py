"""The import graph, computed from the sources: imports go down only, without circles between files or rooms.

Imports inside functions and under TYPE_CHECKING count as well.
"""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers import ROOT

# From the top floor down; a file imports from floors below its own, or from its own room.
FLOORS = (
    "scripts",
    "hydra_plugins",
    "tlexp.commands",
    "tlexp.cli",
    "tlexp.__init__",
    "tlexp.api",
    "tlexp.job tlexp.help",
    "tlexp.error_lines",
    "tlexp.sweeps",
    "tlexp.runs",
    "tlexp.comparison",
    "tlexp.tracking",
    "tlexp.reporting",
    "tlexp.training",
    "tlexp.strategies",
    "tlexp.terms",
    "tlexp.data",
    "tlexp.models",
    "tlexp.backbones",
    "tlexp.config",
    "tlexp.objective",
    "tlexp.run_folder",
    "tlexp.processes tlexp.sqlite_address tlexp.file_names",
    "tlexp.errors tlexp.signals tlexp.rng tlexp.fingerprint tlexp.metric_names tlexp.version tlexp.overrides",
)
# What only one room may know.
OWNERS = {
    "mlflow": ("tlexp.tracking",),
    "optuna": ("tlexp.sweeps",),
    "timm": ("tlexp.backbones",),
    "transformers": ("tlexp.backbones",),
    "matplotlib": ("tlexp.comparison", "tlexp.reporting", "tlexp.runs.result", "tlexp.runs.run_result"),
    "hydra": (
        "tlexp.commands",
        "tlexp.cli",
        "tlexp.api",
        "tlexp.job",
        "tlexp.help",
        "tlexp.error_lines",
        "tlexp.sweeps",
        "tlexp.config",
        "hydra_plugins",
        "scripts",
    ),
}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


FILES = {
    name_of(file): file for folder in ("tlexp", "hydra_plugins", "scripts") for file in (ROOT / folder).rglob("*.py")
}


def imported(file: Path) -> set[str]:
    """Returns the names of all modules that a file imports, ours by their files."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                is_module = submodule in FILES or f"{submodule}.__init__" in FILES
                names.add(submodule if is_module else str(node.module))
    return {f"{name}.__init__" if f"{name}.__init__" in FILES else name for name in names}


GRAPH = {name: imported(file) for name, file in FILES.items()}
OURS = {name: {other for other in others if other in FILES} - {name} for name, others in GRAPH.items()}


def floor_of(name: str) -> int:
    """Returns the floor of a file, 0 at the top."""
    for number, floor in enumerate(FLOORS):
        if any(name == room or name.startswith(f"{room}.") for room in floor.split()):
            return number
    raise AssertionError(f"{name} is on no floor; add it to FLOORS")


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_go_down_only(name):
    upward = {
        other
        for other in OURS[name]
        if floor_of(other) < floor_of(name)
        or (floor_of(other) == floor_of(name) and len(FLOORS[floor_of(name)].split()) > 1)
    }
    assert not upward


def test_there_are_no_circles_between_files():
    TopologicalSorter(OURS).prepare()  # raises CycleError, naming the circle


@pytest.mark.parametrize("package", OWNERS)
def test_a_library_has_one_owner(package):
    users = {name for name, others in GRAPH.items() for other in others if other.split(".")[0] == package}
    assert {name for name in users if not name.startswith((*OWNERS[package], "scripts"))} == set()


def test_no_test_imports_another():
    for file in (ROOT / "tests").rglob("*.py"):
        assert not [name for name in imported(file) if name.startswith("tests.") and name != "tests.helpers"], file
