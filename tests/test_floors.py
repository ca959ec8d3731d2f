"""The rooms and who may know whom: config ← model, data ← engine ← tasks, train.py; launch knows config alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS: dict[str, set[str]] = {
    "config": set(),
    "model": {"config"},
    "data": {"config"},
    "engine": {"config", "model", "data"},
    "tasks": {"config", "model", "data", "engine"},
    "train": {"config", "model", "data", "engine"},
    "launch": {"config"},
}
# Libraries that only some rooms may import.
LIBRARIES: dict[str, set[str]] = {
    "deepspeed": {"engine"},
    "torch": {"model", "engine", "tasks", "train"},
    "numpy": ROOMS.keys() - {"config", "launch"},
}
# Files that import what their room may not, and why.
EXCEPTIONS: dict[str, set[str]] = {
    "launch/doctor/torch_probe.py": {"torch", "deepspeed"},  # a process of its own, which nothing imports
}
KEPT_OUT_OF_TRAINING = {"benchmarks", "tests"}


def imported_packages(source: str) -> Iterator[str]:
    """First name of everything imported, inside functions and through import_module as well."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                yield str(node.args[0].value).split(".")[0]


def violations(room: str, source: str) -> list[str]:
    """Imports that this room must not have."""
    forbidden = (ROOMS.keys() | KEPT_OUT_OF_TRAINING) - ROOMS[room] - {room}
    forbidden |= {library for library, rooms in LIBRARIES.items() if room not in rooms}
    return sorted(set(imported_packages(source)) & forbidden)


def sources(room: str) -> list[Path]:
    return [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_knows_only_the_floors_below(room):
    found = {path.relative_to(ROOT).as_posix(): set(violations(room, path.read_text())) for path in sources(room)}
    assert {path: names for path, names in found.items() if names} == {
        p: n for p, n in EXCEPTIONS.items() if p in found
    }


@pytest.mark.parametrize(
    ("room", "source", "expected"),
    [
        ("config", "def f():\n    import torch.nn", ["torch"]),
        ("config", "from model.gpt import GPT", ["model"]),
        ("model", "import data", ["data"]),
        ("data", "from torch.utils import data", ["torch"]),
        ("model", "if True:\n    from deepspeed import comm", ["deepspeed"]),
        ("engine", "import importlib\nimportlib.import_module('tasks.serve')", ["tasks"]),
        ("launch", "from engine import dist\nimport config", ["engine"]),
        ("tasks", "import benchmarks.stream, tests.ranks", ["benchmarks", "tests"]),
        ("engine", "import deepspeed, torch\nfrom data.stream import open_stream\nfrom . import dist", []),
    ],
)
def test_the_check_finds_what_it_should(room, source, expected):
    assert violations(room, source) == expected


def test_every_room_is_checked():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - KEPT_OUT_OF_TRAINING <= ROOMS.keys()
