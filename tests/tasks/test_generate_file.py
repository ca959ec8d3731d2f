"""`tasks generate --input --out`: a file of prompts, alone or together, at once or in pieces."""

import argparse
import json
from pathlib import Path

import pytest
import torch

import model
from config import ConfigError, DataError
from config.objective_schema import CausalLM, PrefixLM
from data.specials import T5
from data.tokenizer import byte_tokenizer
from tasks import generate_batch
from tasks.checkpoints import Trained
from tasks.generate import add_arguments, check, run
from tests.model.tiny import tiny_config, tiny_model, tiny_t5

PROMPTS = ["the model", "", "reads a row of tokens", "é", "and", "predicts each next one", "x"]


@pytest.fixture(scope="module")
def gpt() -> Trained:
    config = tiny_config(vocab_size=257)
    return Trained(tiny_model(config), byte_tokenizer(), config, CausalLM(), None)


@pytest.fixture
def prompts(tmp_path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": n, "prompt": text}) + "\n" for n, text in enumerate(PROMPTS)))
    return path


def write(trained: Trained, prompts: Path, out: Path, *more: str) -> list[dict]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = ["somewhere", "--input", str(prompts), "--out", str(out), "--tokens", "12", *more]
    options = parser.parse_args(arguments)
    check(options)
    generate_batch.write_file(trained, options)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_rows_keep_their_order_and_fields_at_any_batch_size(gpt, prompts, tmp_path):
    together = write(
        gpt, prompts, tmp_path / "a.jsonl", "--batch-size", "5", "--samples", "2", "--seed", "3", "--logprobs"
    )
    alone = write(
        gpt, prompts, tmp_path / "b.jsonl", "--batch-size", "1", "--samples", "2", "--seed", "3", "--logprobs"
    )
    assert [(row["id"], row["prompt"]) for row in together] == list(enumerate(PROMPTS))
    for first, second in zip(together, alone, strict=True):
        assert first["texts"] == second["texts"] and first["reasons"] == second["reasons"]
        assert first["texts"][0] != first["texts"][1]
        assert [len(values) for values in first["logprobs"]] == [12, 12] or "stop" in first["reasons"]
    other = write(gpt, prompts, tmp_path / "c.jsonl", "--samples", "2", "--seed", "4")
    assert [row["texts"] for row in other] != [row["texts"] for row in together]


def test_a_stopped_command_continues(gpt, prompts, tmp_path, monkeypatch):
    whole = write(gpt, prompts, tmp_path / "whole.jsonl", "--batch-size", "2")
    out, written = tmp_path / "pieces.jsonl", 0

    def stop_after_three(results, first, in_order=generate_batch.in_order):
        for result in in_order(results, first):
            nonlocal written
            if (written := written + 1) > 3:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patch:
        patch.setattr(generate_batch, "in_order", stop_after_three)
        with pytest.raises(KeyboardInterrupt):
            write(gpt, prompts, out, "--batch-size", "2")
    assert not out.exists()
    partial = tmp_path / ".pieces.jsonl.partial"
    assert len(partial.read_text().splitlines()) == 3
    with open(partial, "a") as file:
        file.write('{"id": 3, "prom')
    with pytest.raises(ConfigError, match=r"begun with other settings .temperature 0.8 → 0.5.: use those, or remove"):
        write(gpt, prompts, out, "--temperature", "0.5")
    assert write(gpt, prompts, out, "--batch-size", "3") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pieces.jsonl", "prompts.jsonl", "whole.jsonl"]


def test_a_stop_text_ends_a_row(gpt, prompts, tmp_path):
    free = write(gpt, prompts, tmp_path / "free.jsonl", "--temperature", "0")
    stop = free[2]["text"][4]
    stopped = write(gpt, prompts, tmp_path / "stopped.jsonl", "--temperature", "0", "--stop", stop)
    assert [row["text"] for row in stopped] == [row["text"].split(stop)[0] for row in free]
    assert stopped[2]["reason"] == "stop"


def test_an_encoder_decoder_searches_with_beams(tmp_path):
    tokenizer = byte_tokenizer().with_special_tokens(T5)
    config = tiny_t5(vocab_size=tokenizer.vocab_size, init_std=0.3)
    t5 = Trained(tiny_model(config), tokenizer, config, PrefixLM(), None)
    lines = tmp_path / "prompts.txt"
    lines.write_text("\n".join(PROMPTS) + "\n")
    rows = write(t5, lines, tmp_path / "beams.jsonl", "--beams", "3", "--batch-size", "6")
    alone = write(t5, lines, tmp_path / "alone.jsonl", "--beams", "3", "--batch-size", "1")
    assert [row["text"] for row in rows] == [row["text"] for row in alone]
    greedy = write(t5, lines, tmp_path / "greedy.jsonl", "--temperature", "0", "--logprobs")
    one = write(t5, lines, tmp_path / "one.jsonl", "--beams", "1")
    assert [row["text"] for row in greedy] == [row["text"] for row in one]
    for row in greedy:
        ids = torch.tensor(row["logprobs"])
        assert (ids <= 0).all()
    assert isinstance(t5.model, model.T5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{"text": "b"}\n', r'prompts\.jsonl:2: no text "prompt"'),
        ('{"prompt": "a"}\n{"prompt": \n', r"prompts\.jsonl:2: not JSON"),
        (json.dumps({"prompt": "long " * 20}), r"prompts\.jsonl:1: 101 tokens, more than the model's 64"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_computed(gpt, tmp_path, content, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        write(gpt, path, tmp_path / "out.jsonl")
    assert not (tmp_path / ".out.jsonl.partial").exists()


def test_an_existing_file_is_kept(gpt, prompts, tmp_path):
    (tmp_path / "out.jsonl").write_text("precious")
    with pytest.raises(ConfigError, match="exists already"):
        write(gpt, prompts, tmp_path / "out.jsonl")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--beams", "2", "--samples", "3"], "--samples has no effect on --beams"),
        (["--beams", "2", "--stop", "x"], "--stop has no effect on --beams"),
        (["--beams", "2", "--logprobs"], "--logprobs has no effect on --beams"),
        (["--beams", "2", "--top-k", "5"], "--top-k has no effect on --beams"),
        (["--beams", "0"], "--beams 0 leaves nothing to write"),
        (["--samples", "0"], "--samples 0 leaves nothing to write"),
        (["--tokens", "0", "--beams", "2"], "--tokens 0 leaves nothing to write"),
        (["--prompt", "x"], "--prompt is for a single text, and --input has many"),
        (["--out", "nowhere/out.jsonl"], "there is no folder nowhere"),
    ],
)
def test_options_without_effect_are_refused(gpt, prompts, tmp_path, more, message):
    with pytest.raises(ConfigError, match=message):
        write(gpt, prompts, tmp_path / "out.jsonl", *more)


@pytest.mark.parametrize("option", [["--samples", "2"], ["--beams", "2"], ["--logprobs"]])
def test_options_of_files_are_refused_of_a_single_prompt(option):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(ConfigError, match="is for a file of prompts"):
        run(parser.parse_args(["somewhere", "--prompt", "a", *option]))


def test_beams_that_have_no_room_are_named_before_anything_is_computed(gpt, prompts, tmp_path):
    with pytest.raises(DataError, match=r"prompts\.jsonl:1: 69 tokens, more than the model's 64: .*lower --tokens"):
        write(gpt, prompts, tmp_path / "out.jsonl", "--beams", "2", "--tokens", "60")


def test_lines_end_at_line_feeds_only(gpt, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "a\u2028b\x85c"}, ensure_ascii=False) + "\n", encoding="utf-8")
    (row,) = generate_batch.read(path)
    assert row[1] == "a\u2028b\x85c"
    path.write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(DataError, match="not UTF-8 text"):
        list(generate_batch.read(path))
