"""What all objectives promise: batches that depend on the seed and the global sample alone, whatever the documents."""

import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import DataError
from config.objective_schema import CausalLM, Contrastive, MaskedLM, PrefixLM, SpanCorruption, row_shape
from data.batch import IGNORE, Batch
from data.validation import open_validation
from tests.data.made import EOD, VOCAB_SIZE, data_section, make_corpus, make_stream, numbered_documents

OBJECTIVES = {
    "fim": CausalLM(fim_rate=0.7),
    "mlm": MaskedLM(),
    "whole words": MaskedLM(whole_word=True, mask_rate=0.3),
    "nsp": MaskedLM(pairs="nsp"),
    "sop": MaskedLM(pairs="sop"),
    "spans": SpanCorruption(),
    "prefix": PrefixLM(),
    "contrastive": Contrastive(),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    lengths = np.random.default_rng(0).integers(1, 120, 300).tolist()
    return make_corpus(tmp_path_factory.mktemp("corpora") / "numbered", numbered_documents(lengths))


def arrays(batch: Batch) -> dict[str, np.ndarray]:
    found = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray) and name != "cu_seqlens"}


def joined(batches: list[Batch]) -> dict[str, np.ndarray]:
    """All samples of several batches; the two rows of a contrastive sample side by side, pairs' own numbers left out."""
    out: dict[str, np.ndarray] = {}
    for name in arrays(batches[0]):
        parts = [arrays(batch)[name] for batch in batches]
        if batches[0].parts == ("contrastive",):
            if name == "pair_labels_B":
                continue
            parts = [np.stack(np.split(part, 2), axis=1) for part in parts]
        out[name] = np.concatenate(parts)
    return out


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


@every_objective
def test_ranks_and_micro_batches_only_slice_the_global_batch(path, objective):
    data = data_section(path, 64)
    expected = joined(make_stream(data, objective).step(96)[0])
    for size, micro in [(1, 4), (2, 16), (2, 1), (4, 8)]:
        ranks = [make_stream(data, objective, micro=micro, rank=rank, world_size=size) for rank in range(size)]
        assert_same(joined([batch for rank in ranks for batch in rank.step(96)[0]]), expected)


@every_objective
def test_resume_from_a_cursor_and_a_larger_batch_read_the_same(path, objective):
    data = data_section(path, 64)
    walk = make_stream(data, objective).steps(0)
    steps = [joined(next(walk)[0]) for _ in range(4)]
    assert_same(joined(next(make_stream(data, objective).steps(64))[0]), steps[2])
    whole = joined(make_stream(data, objective, rows=128).step(0)[0])
    assert_same(whole, {name: np.concatenate([step[name] for step in steps]) for name in whole})


@every_objective
def test_another_seed_draws_anew_and_another_epoch_too(path, objective):
    data = data_section(path, 64, shuffle="none")
    epoch = int(make_stream(data, objective)._rows.count_K[0])
    first, other = (joined(make_stream(data, objective, seed=seed).step(0)[0]) for seed in (1, 2))
    second = joined(make_stream(data, objective).step(epoch)[0])
    assert any((first[name] != other[name]).any() for name in first)
    assert any((first[name] != second[name]).any() for name in first)


@every_objective
@pytest.mark.parametrize("world_size", [1, 3])
def test_validation_draws_the_same_on_any_number_of_ranks(path, objective, world_size):
    data = data_section(path, 32)
    options = dict(rows=17, vocab_size=VOCAB_SIZE)
    (whole,) = open_validation(data, objective, micro_batch_size=100, **options)
    ranks = [
        open_validation(data, objective, micro_batch_size=4, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    counted: dict[str, int] = {}
    for batch in [batch for rank in ranks for batch in rank]:
        for part, count in batch.targets().items():
            counted[part] = counted.get(part, 0) + count
    assert counted == whole.targets() and all(counted.values())
    if whole.labels_BT is not None:
        labels = np.concatenate(
            [batch.labels_BT[(batch.labels_BT != IGNORE).any(1)] for rank in ranks for batch in rank]
        )
        assert sorted(map(tuple, labels)) == sorted(map(tuple, whole.labels_BT[(whole.labels_BT != IGNORE).any(1)]))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(1, 4), st.integers(1, 200)), min_size=2, max_size=30),
    row_length=st.integers(6, 70),
    shards=st.integers(1, 3),
    masking=st.booleans(),
    name=st.sampled_from(sorted(OBJECTIVES)),
)
def test_any_documents_make_rows_of_the_right_shape(lengths, row_length, shards, masking, name):
    objective = OBJECTIVES[name]
    shape = row_shape(objective, row_length)
    packs = name in ("fim", "mlm", "whole words")
    with tempfile.TemporaryDirectory() as folder:
        path = make_corpus(Path(folder) / "c", numbered_documents(lengths), shards=min(shards, len(lengths)))
        data = data_section(path, row_length, document_masking=masking and packs)
        try:
            batches, _ = make_stream(data, objective, rows=8, micro=4).step(8)
        except DataError as error:
            assert sum(lengths) + len(lengths) <= shape.text and "lower data.row_length" in str(error)
            return
    for batch in batches:
        rows = 4 * shape.rows
        assert batch.tokens_BT.shape == (rows, shape.decoder or row_length)
        assert (batch.source_BS is None) == (not shape.decoder)
        for array in arrays(batch).values():
            assert array.dtype == np.int64 and len(array) in (rows, 4)
        for tokens in (batch.tokens_BT, batch.source_BS):
            assert tokens is None or ((tokens >= 0).all() and (tokens < VOCAB_SIZE).all())
        if batch.lengths_B is not None:
            assert (batch.lengths_B >= 2).all() and (batch.lengths_B <= row_length).all()
        if batch.cu_seqlens is not None:
            assert batch.cu_seqlens[0] == 0 and batch.cu_seqlens[-1] == batch.tokens_BT.size
            assert batch.max_seqlen == np.diff(batch.cu_seqlens).max()


def test_plain_causal_rows_are_those_of_the_corpus(path):
    tokens = np.concatenate([[*document, EOD] for document in numbered_documents([120] * 3)])
    batch = make_stream(data_section(path, 64, shuffle="none"), CausalLM(), rows=4).step(0)[0][0]
    np.testing.assert_array_equal(batch.labels_BT[:, :-1], batch.tokens_BT[:, 1:])
    ordinary = batch.tokens_BT.ravel()[batch.tokens_BT.ravel() != EOD]
    np.testing.assert_array_equal(ordinary, tokens[tokens != EOD][: len(ordinary)])


def test_nsp_needs_a_second_document(tmp_path):
    path = make_corpus(tmp_path / "one", numbered_documents([500]), shards=1)
    with pytest.raises(DataError, match=r"one: has one document, and objective.pairs nsp .* prepare more documents"):
        make_stream(data_section(path, 32), MaskedLM(pairs="nsp"))
