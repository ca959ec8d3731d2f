"""The page of `python -m tasks evaluate --out`, in a real browser without a screen."""

import shutil

import numpy as np
import pytest

from tasks.evaluate import PAGE
from tasks.evaluation.examples import entities
from tasks.evaluation.result import Result
from tasks.evaluation.vectors import classified
from tasks.pages import Curve, render

api = pytest.importorskip("playwright.sync_api", reason="the browser's tests need playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="the browser's tests need chromium: apt-get install chromium")
NAMES = ["animal", "tool", "<rare>", *(f"a class with a long name {number}" for number in range(9))]


def results() -> list[Result]:
    """A classifier of twelve classes, one of them without an example, a tagger, and curves."""
    draw = np.random.default_rng(0)
    true, probability = draw.integers(0, 11, 400), draw.dirichlet([0.2] * 12, 400)
    many = classified("classification", "reviews/" + "long" * 30 + ".jsonl", true, probability, NAMES, {})
    tags = ("O", "B-PLACE", "I-PLACE")
    rows = [(np.eye(3, dtype=np.float32)[draw.integers(0, 3, 9)], draw.integers(0, 3, 9)) for _ in range(20)]
    scores, labels = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    few = classified("token_classification", "tags.conll", labels, (scores + 0.1) / 1.3, tags, {"rows": 20})
    context = Curve("Loss by context", "tokens of context", "nats", {"loss": [(2.0**n, 5 - n / 4) for n in range(11)]})
    depth = Curve("By depth", "documents", "mean", {"recall": [(1, 0.2), (100, 0.9)], "ndcg": [(1, 0.2), (100, 0.5)]})
    lines = Result("retrieval", "beir", "ndcg@10", {"ndcg@10": 0.5, "none": float("nan")}, curves=[context, depth])
    return [many, entities(few, tags, rows), lines]


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "evaluation.html"
    path.write_text(
        render(PAGE, model="runs/" + "a_long_name_" * 12, dtype="float32", results=results()), encoding="utf-8"
    )
    return path.as_uri()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_stands_in_a_window_and_on_a_telephone(address, width, scheme):
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        loaded, failures = [], []
        page.on("request", lambda request: loaded.append(request.url))
        page.on("console", lambda message: failures.append(message.text))
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(address)
        assert [url for url in loaded if not url.startswith("data:")] == [address] and not failures
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing stands out of the window"
        plots = [plot.bounding_box() for plot in page.locator("svg").all()]
        assert len(plots) == 4 and all(box["width"] > 300 and box["height"] > 180 for box in plots)
        for bar in page.locator("svg .bar").all():
            assert bar.bounding_box()["width"] > 10
        assert page.locator(".confusion").first.locator("td").count() == 12 * 12
        assert "<rare>" in page.locator(".confusion").first.inner_text()
        assert "calibration error" in page.locator("figcaption", has_text="Calibration").first.inner_text()
        background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        assert dark == (scheme == "dark"), background
        browser.close()
