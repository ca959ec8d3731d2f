"""Rows, labels and document boundaries, against a plain reading of the concatenated tokens."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import DataError
from data.batch import IGNORE, causal_rows, read_batches
from data.pack import Rows


def make_shard(lengths, dtype=np.uint16, first=0):
    """A shard whose tokens are numbered from `first`, in documents of the given lengths; pointers lie unaligned."""
    tokens = np.arange(first, first + sum(lengths)).astype(dtype)
    starts = np.cumsum([0, *lengths[:-1]]) * tokens.itemsize
    pointers = np.frombuffer(b"\0" * 3 + starts.astype("<i8").tobytes(), np.uint8)[3:].view("<i8")
    counts = {"token_count": len(tokens), "document_count": len(lengths)}
    return SimpleNamespace(prefix=Path("corpus/shard"), tokens=tokens, pointers=pointers, **counts)


def make_shards(lengths_of_shards, dtype=np.uint16):
    firsts = np.cumsum([0, *map(sum, lengths_of_shards)])
    return [make_shard(lengths, dtype, first) for lengths, first in zip(lengths_of_shards, firsts, strict=False)]


def all_rows(rows, dataset=0):
    index = np.arange(rows.count_K[dataset])
    return rows.locate(np.full_like(index, dataset), index)


document_lengths = st.lists(st.integers(1, 30), min_size=1, max_size=20)


@given(st.lists(document_lengths, min_size=1, max_size=6), st.integers(1, 25))
def test_rows_are_cut_from_the_concatenation(lengths_of_shards, row_length):
    """Tokens are numbered, so a row must be its numbers; every token but the first and the tail is a target once."""
    total = sum(map(sum, lengths_of_shards))
    if total <= row_length:
        return
    rows = Rows([make_shards(lengths_of_shards)], row_length, vocab_size=total)
    token_NS = rows.read(all_rows(rows))
    count = (total - 1) // row_length
    expected = np.arange(count)[:, None] * row_length + np.arange(row_length + 1)
    np.testing.assert_array_equal(token_NS, expected)
    assert token_NS.dtype == np.int64
    assert sorted(token_NS[:, 1:].ravel()) == list(range(1, count * row_length + 1))
    assert total - 1 - count * row_length < row_length


@given(st.lists(document_lengths, min_size=1, max_size=6), st.integers(1, 25), st.integers(1, 4), st.randoms())
def test_document_masking_agrees_with_a_plain_reading(lengths_of_shards, row_length, micro_batch_size, random):
    total = sum(map(sum, lengths_of_shards))
    if total <= row_length:
        return
    document = np.repeat(np.arange(sum(map(len, lengths_of_shards))), [n for shard in lengths_of_shards for n in shard])
    rows = Rows([make_shards(lengths_of_shards)], row_length, vocab_size=total)
    address_N2 = all_rows(rows)[random.sample(range(int(rows.count_K[0])), int(rows.count_K[0]))]
    collate = causal_rows(rows, document_masking=True)
    for batch in read_batches(collate, address_N2, address_N2[:, 0], micro_batch_size):
        bounds = [0]
        for row, tokens in enumerate(batch.tokens_BT):
            for place, token in enumerate(tokens.tolist()):
                same = document[token] == document[token + 1]
                assert batch.labels_BT[row, place] == (token + 1 if same else IGNORE)
                if not same or place == row_length - 1:
                    bounds.append(row * row_length + place + 1)
        assert batch.cu_seqlens.tolist() == bounds
        assert batch.cu_seqlens.dtype == np.int32
        assert batch.max_seqlen == max(np.diff(bounds))


def test_without_masking_inputs_and_labels_share_memory():
    rows = Rows([make_shards([[10, 10, 10]])], 4, vocab_size=30)
    batch = causal_rows(rows, document_masking=False)(all_rows(rows), np.zeros(0, np.int64))
    assert np.shares_memory(batch.tokens_BT, batch.labels_BT)
    np.testing.assert_array_equal(batch.labels_BT, batch.tokens_BT + 1)
    assert (batch.cu_seqlens, batch.max_seqlen) == (None, 4)


def test_datasets_lie_behind_each_other_and_do_not_mix():
    rows = Rows([make_shards([[7], [9]]), [make_shard([40], first=100)], make_shards([[5, 8]])], 3, vocab_size=200)
    assert rows.count_K.tolist() == [5, 13, 4]
    for dataset, first in [(0, 0), (1, 100), (2, 0)]:
        np.testing.assert_array_equal(
            rows.read(all_rows(rows, dataset)), first + np.arange(rows.count_K[dataset])[:, None] * 3 + np.arange(4)
        )


def test_shards_shorter_than_a_row():
    rows = Rows([make_shards([[1]] * 50)], 20, vocab_size=50)
    np.testing.assert_array_equal(rows.read(all_rows(rows)), np.stack([np.arange(21), np.arange(20, 41)]))


@pytest.mark.parametrize(
    ("dtype", "bad", "shown"), [(np.uint16, 60_000, "60,000"), (np.int32, 100, "100"), (np.int32, -2, "-2")]
)
@pytest.mark.parametrize(
    ("lengths", "position"), [([[30, 30]], 42), ([[25], [35]], 2)], ids=["one shard", "row crosses shards"]
)
def test_token_outside_the_vocabulary(dtype, bad, shown, lengths, position):
    shards = make_shards(lengths, dtype)
    shards[-1].tokens[position] = bad
    rows = Rows([shards], 10, vocab_size=100)
    message = f"corpus/shard.bin: token id {shown} at position {position}, but model.vocab_size is 100;"
    with pytest.raises(DataError, match=message):
        rows.read(all_rows(rows))


def test_dataset_shorter_than_a_row():
    with pytest.raises(
        DataError, match=r"corpus: its train split has 10 tokens, .* reads 11; .* lower data.row_length"
    ):
        Rows([make_shards([[10]])], 10, vocab_size=100)
