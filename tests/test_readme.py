"""What the pages promise exists: files, targets of make, commands with their options, settings."""

import re
from pathlib import Path

import pytest

import data.__main__
import launch.__main__
import tasks.__main__
from config import RunConfig
from config.fields import all_settings

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ds_configs/README.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
ROOMS = {"data": data.__main__.main, "launch": launch.__main__.main, "tasks": tasks.__main__.main}
COMMAND = re.compile(r"python -m (data|launch|tasks) ([a-z]+)([^\n`]*)")
SETTINGS = {str(setting) for setting in all_settings(RunConfig)}
NO_SETTINGS = {"optimizer.lrr", "model.encode"}
"""A mistake in an example, and another library's function."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    rooms = "config|data|model|engine|tasks|launch|ds_configs|benchmarks|tests|docs"
    paths = re.findall(rf"`((?:{rooms})/[\w./]+)`", text) + re.findall(rf" ((?:{rooms})/[\w/]+\.\w+)", text)
    paths += [f"{module.replace('.', '/')}.py" for module in re.findall(r"python -m (benchmarks\.\w+)", text)]
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert not missing, f"{page.name} names what does not exist: {missing}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_have_the_options_that_are_shown(page, capsys):
    text = page.read_text().replace("\\\n", " ")
    for room, command, arguments in COMMAND.findall(text):
        with pytest.raises(SystemExit) as ended:
            ROOMS[room]([command, "--help"])
        assert ended.value.code == 0, f"{page.name}: python -m {room} {command} is no command"
        known = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
        unquoted = re.sub(r'"[^"]*"', "", arguments.partition("#")[0])
        unknown = set(re.findall(r"(?<=\s)--[a-z][\w-]*", unquoted)) - known
        assert not unknown, f"{page.name}: python -m {room} {command} has no {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_exist(page):
    sections = "|".join(RunConfig.model_fields)
    named = set(re.findall(rf"(?<![\w./-])(?:{sections})(?:\.[a-z_0-9]+)+(?=[=: `\]])", page.read_text()))
    assert not named - SETTINGS - NO_SETTINGS, f"{page.name} names settings that no recipe has"


def test_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"train", "test"} <= named <= targets | {"."}


def test_nothing_is_left_to_fill_in():
    for page in PAGES:
        assert not re.search(r"@[A-Z]+@|\bTODO\b", page.read_text()), page.name
