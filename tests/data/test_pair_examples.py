"""Files of labelled pairs: every format gives the same rows, whatever ranks and micro-batches; every mistake its message."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from config import DataError, RunConfig
from config.contrastive_schema import ContrastivePairs
from data.batch import IGNORE
from data.pair_examples import open_held_out_pairs, open_pair_stream, pairs_tokenizer
from data.pair_files import PairRows
from data.stream import Stream
from data.tokenizer import byte_tokenizer
from tests.tiny import tiny_config

LINES = [
    {"anchor": f"question {n}", "positive": f"answer {n}", "negatives": [f"wrong {n}{letter}" for letter in "abc"]}
    for n in range(20)
]
OBJECTIVE = ContrastivePairs(hard_negatives=2)


def jsonl(path: Path, lines=LINES) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """The same pairs in every format, and twice in two spellings."""
    flat = [[line["anchor"], line["positive"], *line["negatives"]] for line in LINES]
    rows = ["\t".join(cells) for cells in flat]
    (tmp_path / "pairs.tsv").write_text("\n".join(rows))
    (tmp_path / "header.tsv").write_text("\r\n".join(["anchor\tpositive\tnegative", "", " \t", *rows, " "]))
    table = pyarrow.table({name: [line[name] for line in LINES] for name in LINES[0]})
    pyarrow.parquet.write_table(table, tmp_path / "pairs.parquet", row_group_size=7)
    names = ["anchor", "positive", "negative", "negative_2", "negative_3"]
    numbered = [{"id": 1, **dict(zip(names, cells, strict=True))} for cells in flat]
    byte_tokenizer().save(tmp_path / "tokenizer.json")
    return {
        "jsonl": jsonl(tmp_path / "pairs.jsonl"),
        "numbered": jsonl(tmp_path / "numbered.jsonl", numbered),
        "tsv": str(tmp_path / "pairs.tsv"),
        "header": str(tmp_path / "header.tsv"),
        "parquet": str(tmp_path / "pairs.parquet"),
    }


def config_of(path: str, rows: int = 8, micro: int = 8, seed: int = 1, objective=OBJECTIVE) -> RunConfig:
    pairs = {"train": path, "valid": path, "tokenizer": str(Path(path).parent / "tokenizer.json")}
    return tiny_config(
        run={"seed": seed},
        data={"datasets": (), "pairs": pairs, "row_length": 24, "prefetch_steps": 0},
        model={"vocab_size": 300, "max_positions": 32},
        objective=objective.model_dump(),
        batch={"global_batch_size": rows, "micro_batch_size": micro},
        validation={"rows": 17},
    )


def stream_of(path: str, rows: int = 8, micro: int = 8, seed: int = 1, objective=OBJECTIVE, **options) -> Stream:
    config = config_of(path, rows, micro, seed, objective)
    return open_pair_stream(config, pairs_tokenizer(config), **options)


def samples(batches) -> list[tuple[str, ...]]:
    """The texts of each sample: anchor, positive, negatives."""
    tokenizer, found = byte_tokenizer(), []
    for batch in batches:
        texts = [
            tokenizer.decode(row[1 : length - 1]) for row, length in zip(batch.tokens_BT, batch.lengths_B, strict=True)
        ]
        count = len(batch.pair_labels_B)
        found += list(zip(*(texts[first : first + count] for first in range(0, len(texts), count)), strict=True))
    return found


def test_every_format_holds_the_same_pairs(files):
    expected = [(line["anchor"], line["positive"], tuple(line["negatives"])) for line in LINES]
    for name, path in files.items():
        rows = PairRows(path, 1)
        assert [tuple(rows[number]) for number in range(rows.count_K[0])] == expected, name
    assert PairRows(files["header"], 1).describe(0, 0).endswith("header.tsv:4")


def test_ranks_micro_batches_and_cursors_only_slice(files):
    whole = samples(stream_of(files["jsonl"], rows=16, micro=16).step(16)[0])
    assert all(len(set(negatives)) == 2 for *_, negatives in [(a, p, n) for a, p, *n in whole])
    for anchor, positive, *negatives in whole:
        number = anchor.split()[1]
        assert positive == f"answer {number}" and {text[:-1] for text in negatives} == {f"wrong {number}"}
    ranks = [stream_of(files["jsonl"], rows=16, micro=2, rank=rank, world_size=2).step(16)[0] for rank in range(2)]
    assert samples([batch for rank in ranks for batch in rank]) == whole
    assert samples(stream_of(files["jsonl"]).step(24)[0]) == whole[8:]


def test_an_epoch_reads_each_pair_once_and_the_next_in_another_order_with_other_negatives(files):
    stream = stream_of(files["jsonl"], rows=20, micro=4)
    first, second = (samples(stream.step(cursor)[0]) for cursor in (0, 20))
    assert sorted(a for a, *_ in first) == sorted(a for a, *_ in second) == sorted(line["anchor"] for line in LINES)
    assert [a for a, *_ in first] != [a for a, *_ in second]
    assert {a: n for a, _, *n in first} != {a: n for a, _, *n in second}
    assert samples(stream_of(files["jsonl"], rows=20, micro=4, seed=2).step(0)[0]) != first
    assert "20 rows" in stream.describe(40) and "2.00 epochs" in stream.describe(40)
    assert "pairs.jsonl:" in stream.origin(0, 0, 1, 3)


def test_as_many_negatives_as_asked_for_keep_their_order(files):
    for sample in samples(stream_of(files["jsonl"], objective=ContrastivePairs(hard_negatives=3)).step(0)[0]):
        assert [text[-1] for text in sample[2:]] == ["a", "b", "c"]


def test_equal_texts_have_equal_numbers_and_long_ones_are_cut(tmp_path):
    lines = [{"anchor": f"{n}", "positive": "the same" if n < 2 else 50 * f"{n}"} for n in range(4)]
    byte_tokenizer().save(tmp_path / "tokenizer.json")
    path = jsonl(tmp_path / "pairs.jsonl", lines)
    ((batch,), _) = stream_of(path, 4, 4, objective=ContrastivePairs(mask_duplicates=True)).step(0)
    _, numbers = np.unique(batch.text_ids_B, return_inverse=True)
    texts = [tuple(row) for row in batch.tokens_BT.tolist()]
    assert all((numbers[i] == numbers[j]) == (texts[i] == texts[j]) for i in range(8) for j in range(8))
    assert len(set(texts)) == 7 and batch.lengths_B.max() == 24
    assert stream_of(path, 4, 4, objective=ContrastivePairs()).step(0)[0][0].text_ids_B is None


@pytest.mark.parametrize("world_size", [1, 3])
def test_validation_counts_each_pair_once_on_any_number_of_ranks(files, world_size):
    batches = [
        batch
        for rank in range(world_size)
        for batch in open_held_out_pairs(config_of(files["tsv"], micro=4), rank=rank, world_size=world_size)
    ]
    assert sum(batch.targets()["contrastive"] for batch in batches) == 17
    counted = [
        sample for batch in batches for sample, label in zip(samples([batch]), batch.pair_labels_B, strict=True)
        if label != IGNORE
    ]  # fmt: skip
    assert len(set(counted)) == 17


PAIR = '{"anchor": "a", "positive": "b", "negative": ["c", "d"]}\n'
WRONG = [
    ("p.jsonl", PAIR + "{oops}\n", "p.jsonl:2: not JSON"),
    ("p.jsonl", PAIR + "\n[1]\n", "p.jsonl:3: a JSON list, not an object with fields"),
    ("p.jsonl", PAIR + '{"anchor": "a"}\n', "p.jsonl:2: no 'positive'; there are 'anchor': name the texts of a pair"),
    ("p.jsonl", '{"anchor": "a", "positive": null}\n', "p.jsonl:1: 'positive' is None; give a text that is not empty"),
    ("p.jsonl", '{"anchor": "a", "positive": "b \\ud83d"}\n', "p.jsonl:1: holds '\\ud83d', half of a character"),
    ("p.jsonl", "[" * 100_000, "p.jsonl:1: JSON nested too deep"),
    ("p.jsonl", '{"anchor": " ", "positive": "b"}\n', "p.jsonl:1: 'anchor' is ' '; give a text"),
    ("p.jsonl", '{"anchor": "a", "positive": "b", "negative": 3}\n', "p.jsonl:1: a hard negative is 3; give a text"),
    ("p.tsv", "a\n", "p.tsv:1: 1 column; give anchor, positive"),
    ("p.tsv", "a\tb\tc\td\na\n", "p.tsv:2: 1 column; give anchor, positive and any hard negatives between tabs"),
    (
        "p.jsonl",
        '{"anchor": "a", "positive": "b"}\n',
        "p.jsonl:1: has 0 hard negatives, but objective.hard_negatives is 2: lower it",
    ),
    ("p.jsonl", "", "p.jsonl: has no pairs"),
    ("p.csv", "a,b\n", "p.csv: pairs are read from .jsonl, .tsv, .parquet: convert"),
    ("p.parquet", "PAR1", "p.parquet: not a whole Parquet file"),
]


@pytest.mark.parametrize(("name", "content", "message"), WRONG, ids=[message[:40] for *_, message in WRONG])
def test_each_mistake_in_a_file_has_its_message(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        PairRows(str(tmp_path / name), 1, hard_negatives=2)
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(message)


def test_a_missing_file_and_another_encoding_have_their_messages(tmp_path):
    with pytest.raises(DataError, match=r"none.jsonl: no such file; data.pairs names"):
        PairRows(str(tmp_path / "none.jsonl"), 1)
    (tmp_path / "latin.tsv").write_bytes("a\tb\ncaf\xe9\tb\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.tsv:2: not UTF-8 text: save"):
        PairRows(str(tmp_path / "latin.tsv"), 1)
    pyarrow.parquet.write_table(pyarrow.table({"query": ["a"], "positive": ["b"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match=r"other.parquet: no 'anchor'; there are 'query', 'positive': name"):
        PairRows(str(tmp_path / "other.parquet"), 1)


def test_a_file_that_may_not_be_read_has_its_message(tmp_path, monkeypatch):
    (tmp_path / "a.tsv").write_text("a\tb\n")

    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(np, "memmap", forbidden)
    with pytest.raises(DataError, match=r"a.tsv: Permission denied; data.pairs names"):
        PairRows(str(tmp_path / "a.tsv"), 1)
