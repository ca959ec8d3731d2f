"""`python -m tasks generate`: the text of a trained run."""

import io

import pytest

from data.tokenizer import byte_tokenizer
from tasks.text_stream import StopText, TextStream
from tests.conftest import task, train


def test_a_run_continues_a_prompt_repeatably(recipe, tmp_path):
    assert train(recipe).returncode == 0
    run = str(tmp_path / "runs/tiny")
    first, second = (task("generate", run, "--prompt", "The model", "--tokens", "12", "--seed", "3") for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout and first.stdout.startswith("The model") and len(first.stdout) > 12
    greedy = task("generate", f"{run}/checkpoints/step_00000012", "--temperature", "0", "--tokens", "3")
    assert greedy.returncode == 0, greedy.stderr

    full = task("generate", run, "--prompt", "the " * 10, "--tokens", "500", "--temperature", "0")
    assert "the context of 64 tokens is full" in full.stderr
    nothing = task("generate", tmp_path)
    assert nothing.returncode == 2 and "no intact checkpoint here" in nothing.stderr


def feed(text: str, stop: list[str]) -> tuple[str, bool]:
    tokenizer, out = byte_tokenizer(), io.StringIO()
    stream, stopped = TextStream(tokenizer, out, stop), False
    try:
        for token in tokenizer.encode(text):
            stream.add(0, token)
    except StopText:
        stopped = True
    stream.close()
    return out.getvalue(), stopped


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語", "🙂🙃", "mixed é🙂x"])
def test_characters_appear_whole(text):
    assert feed(text, []) == (text + "\n", False)


def test_stop_text_is_never_shown_and_false_starts_are():
    assert feed("one END two", ["END"]) == ("one \n", True)
    assert feed("EN EEND", ["END"]) == ("EN E\n", True)
    assert feed("ends with EN", ["END"]) == ("ends with EN\n", False)
