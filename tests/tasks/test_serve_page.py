"""The page at /, in a real browser without a screen."""

import shutil
from pathlib import Path

import pytest

from tests.tasks.serving import decoder, serving
from tests.tasks.test_serve_classify import LABELS, tuned

api = pytest.importorskip("playwright.sync_api", reason="the browser's tests need playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="the browser's tests need chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        api.expect.set_options(timeout=20_000)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A tab that remembers what it loaded and what went wrong in its scripts."""
    page = browser.new_page()
    page.loaded, page.failures = [], []
    page.on("request", lambda request: page.loaded.append(request.url))
    page.on("pageerror", lambda error: page.failures.append(str(error)))
    page.set_default_timeout(20_000)
    yield page
    assert not page.failures
    page.close()


def test_a_decoder_s_page_streams_completions_and_compares_texts(page):
    with serving(decoder()) as url:
        page.goto(url)
        page.get_by_label("Text to continue").fill("The model reads")
        page.get_by_label("Temperature").fill("0")
        page.get_by_role("button", name="Continue").click()
        api.expect(page.get_by_role("button", name="Stop")).to_be_disabled()
        shown = page.locator("#text").inner_text()
        body = {"model": "tiny-gpt", "prompt": "The model reads", "temperature": 0, "max_tokens": 32}
        expected = page.request.post(f"{url}/v1/completions", data=body).json()["choices"][0]["text"]
        assert shown.replace("\r", "\n") == ("The model reads" + expected).replace("\r", "\n")

        page.get_by_label("With each of these lines").fill("xyz\n\nThe model\nThe modem")
        page.get_by_label("Text to compare").fill("The model")
        page.get_by_label("Text to compare").press("Enter")
        items = page.locator("#neighbours li")
        api.expect(items).to_have_count(3)
        assert items.nth(0).inner_text().split("\n") == ["1.000", "The model"]
        assert items.nth(1).inner_text().endswith("The modem")
        assert page.get_by_label("Text to judge").is_hidden()
        assert {request.split("/")[2] for request in page.loaded if request.startswith("http")} == {url.split("/")[2]}


def test_stopping_a_stream_and_errors_are_shown(page):
    with serving(decoder(max_positions=4096)) as url:
        page.goto(url)
        page.get_by_label("Most new tokens").fill("4000")
        page.get_by_label("Temperature").fill("0")  # drawn at random, the end token might come at once
        page.get_by_label("Text to continue").press("Control+Enter")
        page.wait_for_function("document.getElementById('text').innerText.length > 30")
        page.get_by_role("button", name="Stop").click()
        api.expect(page.get_by_role("button", name="Continue")).to_be_enabled()
        assert page.locator("#error").is_hidden()
        page.get_by_label("Most new tokens").fill("5000")
        page.get_by_role("button", name="Continue").click()
        api.expect(page.locator("#error")).to_contain_text("maximum context length is 4096 tokens")
    page.get_by_role("button", name="Continue").click()
    api.expect(page.locator("#error")).to_have_text("the server cannot be reached")


def test_a_key_is_asked_for_and_a_wrong_one_is_named(page):
    with serving(decoder(), keys=("secret",)) as url:
        page.goto(url)
        api.expect(page.locator("#error")).to_contain_text("You didn't provide an API key")
        for key, name in (("wrong", "…"), ("secret", "tiny-gpt")):
            page.locator("#key").fill(key)
            page.locator("#key").press("Tab")
            api.expect(page.locator("#name")).to_have_text(name)
            api.expect(page.locator("#error")).to_have_text("Incorrect API key provided" if key == "wrong" else "")


@pytest.mark.parametrize("task", ["pair", "token_classification", "regression"])
def test_a_fine_tuned_model_s_page_shows_its_labels(page, tmp_path: Path, task):
    served, _ = tuned(tmp_path, task)
    with serving(served) as url:
        page.goto(url)
        page.get_by_label("Text to judge").fill("the <b>naïve</b> model")
        if task == "pair":
            page.get_by_label("Second text").fill("reads")
        page.get_by_label("Text to judge").press("Tab")
        page.keyboard.press("Tab") if task == "pair" else None
        page.keyboard.press("Enter")
        result = page.locator("#labels > *")
        if task == "regression":
            assert float(result.inner_text())
        elif task == "pair":
            api.expect(result.locator("li")).to_have_count(3)
            assert {item.split("\n")[1] for item in result.locator("li").all_inner_texts()} == set(LABELS)
        else:
            api.expect(result).to_have_count(3)
            assert [text.split("\n")[0] for text in result.all_inner_texts()] == ["the", "<b>naïve</b>", "model"]
        assert page.get_by_label("Second text").is_visible() == (task == "pair")
