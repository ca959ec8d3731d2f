"""Text that comes in pieces is the text of all tokens, whatever the tokenizer's decoder."""

from io import StringIO

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data.tokenizer import Tokenizer, byte_tokenizer, with_end_token
from data.vocabulary import train_tokenizer
from tasks.text_stream import StopText, TextStream

CORPUS = [
    "the house, the mouse isn't here  at all",
    "Größe naïve 日本語の文 日本語 日本人",
    "Привет мир 🙂🙃 🙂🙃",
    "\n\n x=1",
] * 5


def metaspace(scheme: str) -> Tokenizer:
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    model.decoder = decoders.Metaspace(prepend_scheme=scheme)
    model.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    return with_end_token(model)


def byte_fallback() -> Tokenizer:
    """As Llama 2's: letters of the corpus, every other character as its bytes."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(
        ["the house, the mouse at all"], trainers.BpeTrainer(vocab_size=40, show_progress=False)
    )
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocab |= {token: 256 + n for n, token in enumerate(sorted(trained.get_vocab()))}
    model = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return with_end_token(model)


def word_piece() -> Tokenizer:
    model = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    model.pre_tokenizer, model.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    special = trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]"], show_progress=False)
    model.train_from_iterator(CORPUS, special)
    return with_end_token(model)


def bpe_words() -> Tokenizer:
    """Whose words end with a mark, as GPT-1's."""
    model = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.pre_tokenizer, model.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(vocab_size=200, end_of_word_suffix="</w>", show_progress=False)
    model.train_from_iterator(CORPUS, trainer)
    return with_end_token(model)


TOKENIZERS = {
    "bytes": byte_tokenizer(),
    "byte-level BPE": train_tokenizer(CORPUS, 320),
    "Metaspace": metaspace("always"),
    "Metaspace, first": metaspace("first"),
    "Metaspace, never": metaspace("never"),
    "byte fallback": byte_fallback(),
    "WordPiece": word_piece(),
    "marked words": bpe_words(),
}
WORDS = st.lists(
    st.sampled_from([*"aexß日本 ,.'\n", "🙂", "👩‍🔬", "é", "the", " mouse", "Привет", "don't", "  "]), max_size=12
)
TEXTS = st.one_of(WORDS.map("".join), st.text(st.characters(exclude_categories=["Cs"]), max_size=8))


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    out, found = StringIO(), []
    stream = TextStream(tokenizer, out)
    for token in ids:
        stream.add(0, token)
        found.append(out.getvalue())
    stream.finish()
    return [*found, out.getvalue()]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=TEXTS)
def test_pieces_of_a_text_make_the_text_of_all_its_tokens(name, text):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    found, whole = pieces(tokenizer, ids), tokenizer.decode(ids)
    assert found[-1] == whole
    assert all(whole.startswith(piece) for piece in found)


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "byte fallback"])
@settings(max_examples=100, deadline=None, derandomize=True)
@given(numbers=st.lists(st.integers(0, 10_000), max_size=15))
def test_pieces_of_any_tokens_make_the_text_of_all(name, numbers):
    """Also of bytes that are not UTF-8. A byte fallback alone cannot: it spells a whole run of bytes as broken if one is."""
    tokenizer = TOKENIZERS[name]
    ids = [number % tokenizer.vocab_size for number in numbers]
    assert pieces(tokenizer, ids)[-1] == tokenizer.decode(ids)


def test_characters_come_as_soon_as_they_are_whole():
    text = "é🙂日"
    assert pieces(TOKENIZERS["bytes"], list(text.encode())) == ["", "é", "é", "é", "é", "é🙂", "é🙂", "é🙂", text, text]
    ids = TOKENIZERS["byte fallback"].encode("🙂🙂e")
    assert pieces(TOKENIZERS["byte fallback"], ids)[-6:] == ["🙂", "🙂", "🙂", "🙂🙂", "🙂🙂e", "🙂🙂e"]


def test_bytes_that_never_become_text_are_not_held_for_ever():
    found = pieces(TOKENIZERS["bytes"], [0x80] * 100)
    assert [len(piece) for piece in found[::16]] == [0, 16, 32, 48, 64, 80, 96]
    assert found[-1] == "\ufffd" * 100


def test_the_same_stream_writes_another_text():
    tokenizer, out = TOKENIZERS["Metaspace"], StringIO()
    stream = TextStream(tokenizer, out, stop=["all"])
    for _ in range(2):
        for token in tokenizer.encode("the mouse"):
            stream.add(0, token)
        stream.close()
    assert out.getvalue() == "the mouse\nthe mouse\n"
    with pytest.raises(StopText):
        for token in tokenizer.encode("at all here"):
            stream.add(0, token)
    assert out.getvalue().endswith("\nat ")
