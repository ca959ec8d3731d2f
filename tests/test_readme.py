"""What README and CONTRIBUTING promise exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    rooms = "config|data|model|engine|tasks|launch|ds_configs|benchmarks|tests|docs"
    paths = re.findall(rf"`((?:{rooms})/[\w./]+)`", text) + re.findall(rf" ((?:{rooms})/[\w/]+\.\w+)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert not missing, f"{page.name} names what does not exist: {missing}"


def test_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert {"train", "test"} <= named <= targets | {"."}


def test_nothing_is_left_to_fill_in():
    for page in PAGES:
        assert not re.search(r"@[A-Z]+@|\bTODO\b", page.read_text()), page.name
