"""Hidden tokens and pairs of texts: their statistics, and what they may never do."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers

from config.objective_schema import MaskedLM
from data.batch import IGNORE
from data.masking import Masking
from data.specials import BERT, special_names
from data.tokenizer import Tokenizer
from data.vocabulary import train_tokenizer
from data.words import BEGINS_INSIDE, ENDS_INSIDE, word_table
from tests.data.made import (
    EOD,
    VOCAB_SIZE,
    WORDS,
    data_section,
    make_corpus,
    make_stream,
    numbered_documents,
    word_tokenizer,
)

PAD, CLS, SEP, MASK = range(WORDS + 1, WORDS + 5)
LENGTHS = np.random.default_rng(3).integers(2, 160, 240).tolist()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    return make_corpus(tmp_path_factory.mktemp("corpora") / "numbered", numbered_documents(LENGTHS), shards=3)


def batch_of(path: str, objective: MaskedLM, row_length: int = 128, rows: int = 512, **settings):
    (batch,), _ = make_stream(data_section(path, row_length, **settings), objective, rows).step(0)
    return batch


def assert_share(count: int, of: int, expected: float) -> None:
    """Within four standard deviations of a binomial share."""
    assert abs(count - of * expected) <= 4 * np.sqrt(of * expected * (1 - expected)), f"{count} of {of}, not {expected}"


@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_mask_rate_and_shares(path, rate):
    """15 % of the tokens; of these 80 % [MASK], 10 % random, 10 % as they are (Devlin et al. 2018, section 3.1)."""
    batch = batch_of(path, MaskedLM(mask_rate=rate))
    chosen = batch.labels_BT != IGNORE
    text = np.where(chosen, batch.labels_BT, batch.tokens_BT)
    ordinary = text < WORDS
    assert not (chosen & ~ordinary).any(), "a special token was hidden"
    assert_share(chosen.sum(), ordinary.sum(), rate)
    read, labels = batch.tokens_BT[chosen], batch.labels_BT[chosen]
    assert_share((read == MASK).sum(), len(read), 0.8)
    assert_share((read == labels).sum(), len(read), 0.1)
    replaced = read[(read != MASK) & (read != labels)]
    assert_share(len(replaced), len(read), 0.1)
    assert (replaced < WORDS).all()
    assert_share((replaced < WORDS // 4).sum(), len(replaced), 0.25)


def test_choices_of_neighbours_are_independent(path):
    chosen = batch_of(path, MaskedLM(mask_rate=0.5)).labels_BT[:, 1:-1] != IGNORE
    for distance in (1, 2, 7):
        both = chosen[:, distance:] & chosen[:, :-distance]
        assert abs(both.mean() - chosen.mean() ** 2) < 0.01
    assert abs((chosen[1:] & chosen[:-1]).mean() - chosen.mean() ** 2) < 0.01


@pytest.mark.parametrize(
    ("shares", "read"), [((1, 0), "mask"), ((0, 1), "random"), ((0, 0), "same")], ids=["mask", "random", "same"]
)
def test_extreme_shares(path, shares, read):
    batch = batch_of(path, MaskedLM(mask_rate=1, mask_share=shares[0], random_share=shares[1]))
    chosen = batch.labels_BT != IGNORE
    same = batch.tokens_BT[chosen] == batch.labels_BT[chosen]
    assert (chosen == (np.where(chosen, batch.labels_BT, batch.tokens_BT) < WORDS)).all()
    expected = {"mask": (batch.tokens_BT[chosen] == MASK).all(), "random": same.mean() < 0.01, "same": same.all()}
    assert expected[read]


def test_rows_hold_the_text_between_cls_and_sep(path):
    batch = batch_of(path, MaskedLM(), shuffle="none", rows=50)
    text = np.where(batch.labels_BT != IGNORE, batch.labels_BT, batch.tokens_BT)
    assert (text[:, 0] == CLS).all() and (text[:, -1] == SEP).all()
    corpus = np.concatenate([[*document, SEP] for document in numbered_documents(LENGTHS)])
    np.testing.assert_array_equal(text[:, 1:-1].ravel(), corpus[: 50 * 126])


def test_documents_of_a_row_are_separated_where_they_begin(path):
    batch = batch_of(path, MaskedLM(mask_share=0, random_share=0), document_masking=True, rows=60)
    tokens = batch.tokens_BT.ravel()
    for begin in batch.cu_seqlens[1:-1].tolist():
        assert tokens[begin - 1] == SEP and (begin % 128 == 0) == (tokens[begin] == CLS)
    pieces = np.split(tokens, batch.cu_seqlens[1:-1])
    assert all(len(np.flatnonzero(np.diff(piece[piece < WORDS]) != 1)) == 0 for piece in pieces)


@pytest.fixture(scope="module")
def english() -> Tokenizer:
    text = "the unbelievable characteristics of tokenisation, 1234 numbers and re-arranged words: naïve café\n" * 40
    return train_tokenizer([text], 330).with_special_tokens(special_names(MaskedLM()))


def test_whole_words_are_hidden_whole(english):
    text = "the characteristics, (believable) unbelievable numbers 12345 re-arranged naïve tokenisation of words\n" * 20
    masking = Masking.of(MaskedLM(whole_word=True, mask_rate=0.3), 5, english, english.vocab_size)
    token_BT = np.array([english.encode(text)] * 200)
    _, labels_BT = masking(token_BT.copy(), np.arange(200))
    chosen_BT = labels_BT != IGNORE
    # A plain reading of the text: a token goes on with a word if there is a letter or digit on both sides of its edge.
    pieces = [english.decode([token]) for token in token_BT[0]]
    continues = [
        (a[-1].isalnum() or a[-1] == "\ufffd") and (b[0].isalnum() or b[0] == "\ufffd")
        for a, b in itertools.pairwise(pieces)
    ]
    word = np.cumsum([1, *(not inside for inside in continues)]) - 1
    hidden = [chosen_BT[:, word == number] for number in range(word[-1] + 1)]
    assert max(part.shape[1] for part in hidden) > 2
    assert all((part == part[:, :1]).all() for part in hidden)
    assert_share(sum(part[:, 0].sum() for part in hidden), 200 * len(hidden), 0.3)


def test_word_pieces_and_ideographs():
    vocab = {
        piece: i for i, piece in enumerate(["play", "##ing", ",", "[MASK]", "\u2581new", "er", "\u65e5", "\u672c"])
    }
    spec = {"model": {"type": "WordPiece", "continuing_subword_prefix": "##", "vocab": vocab}}
    tokenizer = SimpleNamespace(spec=json.dumps(spec), special_ids=(3,))
    flags = word_table(tokenizer, 10)
    assert flags[:4].tolist() == [ENDS_INSIDE, BEGINS_INSIDE | ENDS_INSIDE, 0, 0]
    assert flags[8:].tolist() == [0, 0]
    spec = {"model": {"type": "Unigram", "vocab": [[piece, -1.0] for piece in vocab]}}
    flags = word_table(SimpleNamespace(spec=json.dumps(spec), special_ids=(3,)), 8)
    assert flags[4:].tolist() == [ENDS_INSIDE, BEGINS_INSIDE | ENDS_INSIDE, 0, 0]


@pytest.fixture(scope="module", params=["nsp", "sop"])
def pairs(request, path):
    batch = batch_of(path, MaskedLM(pairs=request.param, mask_share=0, random_share=0), row_length=64, rows=4000)
    return request.param, batch


def document_of(tokens: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(LENGTHS), tokens, side="right")


def test_pairs_are_balanced_and_labelled_truly(pairs):
    kind, batch = pairs
    labels = batch.pair_labels_B
    assert_share((labels == 1).sum(), len(labels), 0.5)
    for tokens, length, types, label in zip(
        batch.tokens_BT, batch.lengths_B, batch.token_types_BT, labels, strict=True
    ):
        assert tokens[0] == CLS and tokens[length - 1] == SEP and (tokens[length:] == PAD).all()
        (cut, end) = np.flatnonzero(tokens == SEP)
        assert end == length - 1
        assert (types == ((np.arange(64) > cut) & (np.arange(64) < length))).all()
        first, second = tokens[1:cut], tokens[cut + 1 : end]
        assert len(first) and len(second)
        assert (np.diff(first) == 1).all() and (np.diff(second) == 1).all(), "a text is not one run of a document"
        same = document_of(first[:1]) == document_of(second[:1])
        if label == 0:
            assert first[-1] + 1 == second[0] and same
        elif kind == "sop":
            assert second[-1] + 1 == first[0] and same
        else:
            assert not same, "the random text is from the same document"


def test_random_second_texts_come_from_all_documents_alike(path):
    batch = batch_of(path, MaskedLM(pairs="nsp", mask_share=0, random_share=0), row_length=24, rows=20_000)
    cut = (batch.tokens_BT == SEP).argmax(axis=1)
    second = batch.tokens_BT[np.arange(20_000), cut + 1][batch.pair_labels_B == 1]
    counts = np.bincount(document_of(second), minlength=len(LENGTHS))
    expected = len(second) / len(LENGTHS)
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < len(LENGTHS) + 5 * np.sqrt(2 * len(LENGTHS))


def test_passages_come_from_documents_in_proportion_to_their_length(path):
    batch = batch_of(path, MaskedLM(pairs="sop", mask_share=0, random_share=0), row_length=64, rows=20_000)
    counts = np.bincount(document_of(batch.tokens_BT[:, 1]), minlength=len(LENGTHS))
    expected = (np.array(LENGTHS) + 1) / (sum(LENGTHS) + len(LENGTHS)) * 20_000
    assert np.corrcoef(counts, expected)[0, 1] > 0.95


def test_a_document_of_one_token_is_no_pair(tmp_path):
    path = make_corpus(tmp_path / "short", numbered_documents([1] * 400))
    batch = batch_of(path, MaskedLM(pairs="nsp"), row_length=16, rows=8)
    assert (batch.pair_labels_B == IGNORE).all() and (batch.lengths_B == 4).all()
    assert batch.targets()["pairs"] == 0


def test_special_tokens_are_taken_from_a_tokenizer_that_has_them():
    bert = {name: number for number, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word", "##s"])}
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(bert, unk_token="[UNK]"))
    model.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|endoftext|>"])
    own = Tokenizer(model.to_str())
    assert own.with_special_tokens(BERT) is own
    assert own.ids_of(BERT) == [0, 2, 3, 4]
    ours = word_tokenizer()
    extended = ours.with_special_tokens(BERT)
    assert (extended.ids_of(BERT), extended.vocab_size) == ([PAD, CLS, SEP, MASK], EOD + 5)
    assert extended.with_special_tokens(BERT) is extended
    assert extended.eod_id == ours.eod_id and extended.encode("w7") == [7] and extended.vocab_size < VOCAB_SIZE


def test_a_special_token_in_a_text_is_ordinary_text(english):
    assert not set(english.encode("[MASK] and [CLS]")) & set(english.special_ids)
