"""The built-in corpus: sources and documentation of the running interpreter's standard library."""

import importlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

TOPICS = "pydoc_data/topics.py"


def python_files() -> list[Path]:
    """Every .py file of the standard library, tests included, installed packages excluded, sorted.

    A virtual environment's path leads to the interpreter it was made from.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    foreign = {"site-packages", "dist-packages", "__pycache__"}
    return sorted(
        path
        for path in root.rglob("*.py")
        if foreign.isdisjoint(path.relative_to(root).parts) and not path.as_posix().endswith(TOPICS) and path.is_file()
    )


def topics() -> Iterator[str]:
    """The language reference as `help()` shows it, one text for each topic."""
    from pydoc_data.topics import topics as texts

    for name in sorted(texts):
        yield texts[name]


def docstrings() -> Iterator[str]:
    """One text for each module written in C: its documentation and that of its members.

    Modules written in Python are left out: their documentation is in their source.
    """
    for name in compiled_modules():
        try:
            module = importlib.import_module(name)
        except Exception:  # an optional module whose library this machine lacks
            continue
        yield "\n\n\n".join(_documentation(module))


def compiled_modules() -> list[str]:
    """Names of the built-in and extension modules of the standard library, test helpers excluded."""
    folder = Path(sysconfig.get_config_var("DESTSHARED") or "")
    extensions = {path.name.split(".")[0] for path in folder.glob("*.so")} & set(sys.stdlib_module_names)
    names = extensions | set(sys.builtin_module_names)
    return sorted(name for name in names if not name.startswith(("_test", "_xx", "xx")))


def _documentation(module: object) -> Iterator[str]:
    """`name` and documentation of a module, its members and the methods of its classes, each text once."""
    name = getattr(module, "__name__", "")
    told: set[str] = set()
    members = [(name, module)]
    for member, value in inspect.getmembers(module):
        members.append((f"{name}.{member}", value))
        if inspect.isclass(value):
            members += [(f"{name}.{member}.{method}", body) for method, body in vars(value).items()]
    for title, value in members:
        text = inspect.getdoc(value) if callable(value) or value is module else None
        if text and text not in told:
            told.add(text)
            yield f"{title}\n\n{text}"
