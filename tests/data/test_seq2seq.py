"""Span corruption, prefixes, fill-in-the-middle and crops: nothing of the text is lost, and the statistics are the papers'."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.objective_schema import CausalLM, Contrastive, PrefixLM, SpanCorruption, row_shape
from data.batch import IGNORE
from data.draw import below, chance, draw, pick
from data.seq2seq import segment
from data.similar import join_similar
from tests.data.made import EOD, WORDS, data_section, make_corpus, make_stream, numbered_documents

LENGTHS = np.random.default_rng(5).integers(1, 150, 200).tolist()
CORPUS = np.concatenate([[*document, EOD] for document in numbered_documents(LENGTHS)])
PAD = WORDS + 1
SENTINEL = WORDS + 2
PREFIX, MIDDLE, SUFFIX = range(WORDS + 1, WORDS + 4)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    return make_corpus(tmp_path_factory.mktemp("corpora") / "numbered", numbered_documents(LENGTHS))


def batch_of(path: str, objective, row_length: int, rows: int, **settings):
    data = data_section(path, row_length, shuffle="none", **settings)
    return make_stream(data, objective, rows).step(0)[0][0]


def text_of(objective, row_length: int, rows: int) -> np.ndarray:
    """What the corpus holds for the first rows."""
    text = row_shape(objective, row_length).text
    return CORPUS[: rows * text].reshape(rows, text)


def fill_in(source: np.ndarray, target: np.ndarray) -> list[int]:
    """The text, by putting each span of the target in the place of its sentinel in the source."""
    spans: list[list[int]] = []
    for token in target.tolist():
        if token >= SENTINEL:
            assert token == SENTINEL + len(spans), "sentinels are not in order"
            spans.append([])
        else:
            spans[-1].append(token)
    assert all(spans), "a span is empty"
    text: list[int] = []
    for token in source.tolist():
        text += spans[token - SENTINEL] if token >= SENTINEL else [token]
    return text


@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 3.0), (0.15, 8.0), (0.3, 1.0)])
def test_spans_put_back_give_the_text(path, density, mean):
    objective = SpanCorruption(noise_density=density, mean_span_length=mean)
    batch = batch_of(path, objective, 128, 60)
    shape = row_shape(objective, 128)
    for source, labels, text in zip(batch.source_BS, batch.labels_BT, text_of(objective, 128, 60), strict=True):
        assert source[-1] == labels[-1] == EOD
        assert fill_in(source[:-1], labels[:-1]) == text.tolist()
        assert (source >= SENTINEL).sum() == (labels >= SENTINEL).sum() == shape.spans
        noise = len(labels) - 1 - shape.spans
        assert noise == round(len(text) * density)
        assert abs(noise / shape.spans - mean) <= mean / shape.spans
        assert (np.diff(np.flatnonzero(source >= SENTINEL)) > 1).all(), "two spans touch"
    assert (batch.tokens_BT[:, 0] == PAD).all()
    np.testing.assert_array_equal(batch.tokens_BT[:, 1:], batch.labels_BT[:, :-1])


def test_every_place_is_cut_out_alike_but_the_ends(path):
    """As the reference's segmentation does it: text begins with what is kept and ends with a span."""
    objective = SpanCorruption()
    data = data_section(path, 64)
    batches, _ = make_stream(data, objective, 8000, 500).step(0)
    shape = row_shape(objective, 64)
    places = []
    for batch in batches:
        for source in batch.source_BS:
            kept = np.flatnonzero(source >= SENTINEL)
            places.append(kept)
    first = np.array(places)[:, 0]
    assert first.min() == 1 and np.all(np.array(places)[:, -1] == 62)
    # The first of s kept parts of k tokens, uniform over all cuts: P(length = 1) = (s - 1) / (k - 1).
    expected = (shape.spans - 1) / (shape.text - shape.noise - 1)
    assert abs((first == 1).mean() - expected) < 4 * np.sqrt(expected / 8000)


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 2**32))
def test_segments_are_parts_of_the_whole(parts, more, seed):
    items = parts + more
    length = segment(draw(seed, np.arange(5)[:, None], np.arange(items - 1)), parts)
    assert length.shape == (5, parts) and (length >= 1).all() and (length.sum(axis=1) == items).all()


def test_all_segmentations_are_equally_likely():
    length = segment(draw(1, np.arange(30_000)[:, None], np.arange(5)), 3)
    counts = np.unique(length, axis=0, return_counts=True)[1]
    assert len(counts) == 10, "5 gaps, 2 cuts"
    assert ((counts - 3000) ** 2 / 3000).sum() < 9 + 5 * np.sqrt(18)


def test_a_prefix_and_its_continuation_are_the_row(path):
    batch = batch_of(path, PrefixLM(), 40, 250)
    lengths = batch.source_lengths_B
    for b, text in enumerate(text_of(PrefixLM(), 40, 250)):
        source, labels = batch.source_BS[b], batch.labels_BT[b]
        assert (source[lengths[b] :] == PAD).all() and (labels[40 - lengths[b] :] == IGNORE).all()
        whole = [*source[: lengths[b]], *labels[: 40 - lengths[b]]]
        assert whole == text.tolist()
        assert batch.tokens_BT[b, 0] == PAD
        np.testing.assert_array_equal(batch.tokens_BT[b, 1 : 40 - lengths[b]], labels[: 39 - lengths[b]])
    assert set(lengths.tolist()) <= set(range(1, 40)) and abs(lengths.mean() - 20) < 4 * 11.3 / np.sqrt(250)


def restore(ids: list[int]) -> tuple[list[int], str]:
    """The document that was rearranged, and how it was."""
    if PREFIX not in ids:
        return ids, "plain"
    suffix, middle = ids.index(SUFFIX), ids.index(MIDDLE)
    end = [EOD] if ids[-1] == EOD else []
    ids = ids[: len(ids) - len(end)]
    assert ids[0] == PREFIX and suffix < middle
    if suffix == 1:  # suffix, then prefix and middle as one
        return [*ids[middle + 1 :], *ids[2:middle], *end], "spm"
    return [*ids[1:suffix], *ids[middle + 1 :], *ids[suffix + 1 : middle], *end], "psm"


@pytest.mark.parametrize("masking", [False, True])
@pytest.mark.parametrize("rate", [0.4, 1.0])
def test_rearranged_documents_are_the_documents(path, masking, rate):
    rows = 60
    batch = batch_of(path, CausalLM(fim_rate=rate, fim_spm_rate=0.25), 96, rows, document_masking=masking)
    plain = batch_of(path, CausalLM(), 96, rows, document_masking=masking)
    if masking:
        np.testing.assert_array_equal(batch.cu_seqlens, plain.cu_seqlens)
        np.testing.assert_array_equal(batch.labels_BT == IGNORE, plain.labels_BT == IGNORE)
    else:
        np.testing.assert_array_equal(batch.tokens_BT[:, 1:], batch.labels_BT[:, :-1])
    kinds = {"plain": 0, "psm": 0, "spm": 0}
    for tokens, text in zip(batch.tokens_BT, plain.tokens_BT, strict=True):
        bounds = [0, *(np.flatnonzero(text[:-1] == EOD) + 1).tolist(), 96]
        for begin, end in itertools.pairwise(bounds):
            piece, document = tokens[begin:end].tolist(), text[begin:end].tolist()
            if end == 96:
                continue  # its last token is the row's last label
            restored, kind = restore(piece)
            ended = 1
            kept = len(document) - ended - 3
            if kept < 1:
                assert piece == document
                continue
            kinds[kind] += 1
            assert restored == (document if kind == "plain" else [*document[:kept], EOD])
    total = sum(kinds.values())
    moved = kinds["psm"] + kinds["spm"]
    assert abs(moved - rate * total) <= 4 * np.sqrt(total * rate * (1 - rate))
    assert abs(kinds["spm"] - 0.25 * moved) <= 4 * np.sqrt(moved * 0.25 * 0.75) + 2  # an empty prefix looks like it


def test_crops_are_runs_of_one_document_of_the_shares_asked_for(path):
    objective = Contrastive(min_crop=0.2, max_crop=0.5)
    rows = 3000
    batch = batch_of(path, objective, 40, rows)
    assert batch.tokens_BT.shape == (2 * rows, 40) and batch.targets() == {"contrastive": rows}
    ends, shares = np.cumsum(LENGTHS), []
    apart = 0
    for b in range(rows):
        crops = []
        for row in (b, rows + b):
            tokens, length = batch.tokens_BT[row], batch.lengths_B[row]
            assert (tokens[0], tokens[length - 1]) == (WORDS + 2, WORDS + 3) and (tokens[length:] == PAD).all()
            crops.append(tokens[1 : length - 1])
            assert (np.diff(crops[-1]) == 1).all()
        documents = {int(np.searchsorted(ends, crop[0], side="right")) for crop in crops}
        assert len(documents) == 1, "two documents in one pair"
        passage = min(LENGTHS[documents.pop()], row_shape(objective, 40).text)
        if passage >= 20:
            shares += [len(crop) / passage for crop in crops]
            apart += crops[0].tolist() != crops[1].tolist()
    assert min(shares) >= 0.17 and max(shares) <= 0.53 and abs(np.mean(shares) - 0.35) < 0.01
    assert apart > 0.95 * len(shares) / 2


def test_joined_crops_are_those_of_the_larger_batch(path):
    stream = make_stream(data_section(path, 40), Contrastive(), 12, 4)
    joined, whole = (
        join_similar(stream.step(0)[0]),
        make_stream(data_section(path, 40), Contrastive(), 12).step(0)[0][0],
    )
    np.testing.assert_array_equal(joined.tokens_BT, whole.tokens_BT)
    np.testing.assert_array_equal(joined.lengths_B, whole.lengths_B)
    assert joined.targets() == whole.targets()


@settings(max_examples=50)
@given(st.integers(0, 2**64 - 1), st.integers(1, 2**31))
def test_draws_stay_in_range(word, bound):
    assert 0 <= pick(word, bound) < bound
    assert 0 <= below(np.array([word], np.uint64), bound)[0] < bound
    assert chance(np.array([word], np.uint64), 1.0)[0] and not chance(np.array([word], np.uint64), 0.0)[0]


def test_draws_are_uniform_and_independent_between_samples():
    words = draw(7, np.arange(2000)[:, None], np.arange(100))
    share = words * 2.0**-64
    assert abs(share.mean() - 0.5) < 0.003 and abs(share.std() - 12**-0.5) < 0.003
    assert abs(np.corrcoef(share[:-1].ravel(), share[1:].ravel())[0, 1]) < 0.01
    assert len(np.unique(words)) == words.size
