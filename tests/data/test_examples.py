"""Labelled examples as a stream: ranks, micro-batches and cursors only slice it; what is encoded once is read again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from config import RunConfig
from data import example_table
from data.batch import IGNORE, Batch
from data.examples import examples_tokenizer, open_example_stream, open_held_out_examples
from data.tokenizer import byte_tokenizer
from tests.tiny import tiny_config

EXAMPLES = [{"text": f"question {n} " + "x" * n, "label": f"answer {n}"} for n in range(17)]


def config_of(folder: Path, micro: int = 8, examples: list[dict] = EXAMPLES, **objective: Any) -> RunConfig:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    byte_tokenizer().save(folder / "tokenizer.json")
    files = {"train": str(path), "valid": str(path), "tokenizer": str(folder / "tokenizer.json")}
    return tiny_config(
        run={"seed": 1, "folder": str(folder / "runs")},
        data={"datasets": (), "examples": files, "row_length": 64, "prefetch_steps": 0},
        model={"vocab_size": 300, "max_positions": 64},
        objective={"name": "instruction", **objective},
        batch={"global_batch_size": 8, "micro_batch_size": micro},
    )


def learned(batches: list[Batch]) -> list[str]:
    """What is learned of each row: its answers, each with its end."""
    return [byte_tokenizer().decode(row[row != IGNORE]) for batch in batches for row in batch.labels_BT]


def answers(rows: list[str]) -> list[str]:
    return sorted(answer for row in rows for answer in row.split(byte_tokenizer().eod_token) if answer)


@pytest.mark.parametrize("packing", [False, True])
def test_ranks_micro_batches_and_cursors_only_slice(tmp_path, packing):
    def steps(micro: int, rank: int = 0, world_size: int = 1, cursor: int = 0) -> list[list[str]]:
        config = config_of(tmp_path, micro, packing=packing)
        stream = open_example_stream(config, examples_tokenizer(config), rank=rank, world_size=world_size)
        walk = stream.steps(cursor)
        return [learned(next(walk)[0]) for _ in range(12 - cursor // 8)]

    whole = steps(8)
    rows = (
        17
        if not packing
        else len(example_table.pack(np.array([len(f"{e['text']}{e['label']}") for e in EXAMPLES]), 64).lengths)
    )
    flat = [row for step in whole for row in step]
    for epoch in range(len(flat) // rows):
        assert answers(flat[epoch * rows : (epoch + 1) * rows]) == answers([e["label"] for e in EXAMPLES])
    assert flat[:rows] != flat[rows : 2 * rows]
    assert steps(8, cursor=40) == whole[5:]
    parts = [steps(2, rank, 2) for rank in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_held_out_example_counts_once_on_any_number_of_ranks(tmp_path, world_size):
    config = config_of(tmp_path, 4, packing=False)
    ranks = [open_held_out_examples(config, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    assert answers(learned([batch for batches in ranks for batch in batches])) == answers(
        [e["label"] for e in EXAMPLES]
    )


def test_examples_are_encoded_once_and_again_when_their_end_is_another(tmp_path, monkeypatch):
    config = config_of(tmp_path)
    tokenizer = examples_tokenizer(config)
    ends = [open_example_stream(config, tokenizer).step(0)[0][0].labels_BT.max()]
    monkeypatch.setattr(example_table, "_save", None)
    open_example_stream(config, tokenizer).step(0)
    monkeypatch.undo()
    tokenizer = tokenizer.with_special_tokens(["[END]"])
    tokenizer.save(tmp_path / "tokenizer.json")
    for end in (tokenizer.eod_token, "[END]"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
        ends.append(open_example_stream(config, examples_tokenizer(config)).step(0)[0][0].labels_BT.max())
    assert ends == [256, 256, 257]


def test_ranks_may_encode_the_same_file_at_the_same_time(tmp_path, monkeypatch):
    """The second one begins and ends while the first one writes."""
    config = config_of(tmp_path)
    tokenizer, save, waiting = examples_tokenizer(config), np.savez, [True]

    def interrupted(file, **arrays):
        file.write(b"begun")
        file.seek(0)
        if waiting and waiting.pop():
            open_example_stream(config, tokenizer)
        save(file, **arrays)

    monkeypatch.setattr(np, "savez", interrupted)
    assert learned(open_example_stream(config, tokenizer).step(0)[0])
    assert len(list((tmp_path / "runs" / example_table.CACHE).iterdir())) == 1
