"""Tokenizers: trained, loaded in each format, and encoded by the fast path only where it is exact."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest
import regex
import tiktoken
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from config import DataError
from data.documents import ReadOptions, Unit
from data.encode import GPT2_SPLIT, choose_encoder, make_encoder, merges_of
from data.stdlib import python_files
from data.tokenizer import Tokenizer, byte_alphabet, byte_level_bpe, byte_tokenizer, with_end_token
from data.vocabulary import SPLIT, TIKTOKEN_SPLITS, load_any, sample_texts, train_tokenizer

TEXTS = [path.read_text(errors="replace")[:10_000] for path in python_files()[:30]]
AWKWARD = [
    "", " ", "\n", "  \n\n\t x", "I'LL don't 123456 αβγ ÀÉ 中文字 🎉👨‍👩‍👧 \u0301e\u0301", "a" * 3000, " " * 3000, "\r\n\r\n\x0b\x1c\x85\u2028\u3000 end",
    "<|endoftext|> <|endoftext|>", "\u200b\u200d\ufeff\U0010ffff ſ K 'ſ", "=" * 1000 + "\n" * 1000,
]  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(TEXTS, 1000)


def test_the_byte_tokenizer_is_utf8():
    tokenizer = byte_tokenizer()
    assert (tokenizer.vocab_size, tokenizer.eod_id) == (257, 256)
    for text in AWKWARD:
        assert tokenizer.encode(text) == list(text.encode())
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_byte_alphabet_is_that_of_the_tokenizers_library():
    assert set(byte_alphabet().values()) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    library = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for point in (0, 10, 32, 65, 127, 160, 173, 255, 0x4E2D):
        spelled = "".join(byte_alphabet()[byte] for byte in chr(point).encode())
        assert library.pre_tokenize_str(chr(point))[0][0] == spelled


def test_a_trained_tokenizer_has_the_size_asked_for_and_the_end_token_last(trained):
    assert (trained.vocab_size, trained.eod_id, trained.eod_token) == (1000, 999, "<|endoftext|>")
    assert sum(len(trained.encode(text)) for text in TEXTS) < sum(map(len, TEXTS)) / 2


def test_tokens_know_how_many_bytes_they_stand_for(trained):
    for tokenizer in (trained, byte_tokenizer()):
        for text in [*AWKWARD, *TEXTS]:
            assert tokenizer.byte_lengths[tokenizer.encode(text)].sum() == len(text.encode())
        assert tokenizer.byte_lengths[tokenizer.eod_id] == 0
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece({"a": 0, "##b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    assert with_end_token(words).byte_lengths is None


@given(st.text())
def test_decoding_gives_the_text_back(text):
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, 270)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_end_token_in_a_text_is_text(trained):
    for encode in (trained.encode, make_encoder(trained, "tiktoken"), byte_tokenizer().encode):
        assert 999 not in encode("a<|endoftext|>b")
    assert trained.decode([999]) == "<|endoftext|>"
    assert trained.encode_batch(["a<|endoftext|>b"]) == [trained.encode("a<|endoftext|>b")]


def test_training_is_the_same_in_another_process(trained):
    code = (
        "from tests.data.test_tokenizer import TEXTS; from data.vocabulary import train_tokenizer;"
        "print(train_tokenizer(TEXTS, 1000).fingerprint)"
    )
    root = Path(__file__).parents[2]
    output = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert output.strip() == trained.fingerprint


def test_too_little_text_gives_a_smaller_vocabulary():
    assert train_tokenizer(["ab ab ab"], 5000).vocab_size < 300


def test_the_sample_takes_a_part_of_every_unit(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text(f"{i}" * 99 + "\n" + "x" * 99 + "\n")
    units = [Unit("line", (str(tmp_path / f"{i}.txt"),), 0, 200, 200) for i in range(10)]
    sample = list(sample_texts(units, ReadOptions(), "nfc", 1000))
    assert sorted({text[0] for text in sample} - {"x"}) == [str(i) for i in range(10)]
    assert 900 < sum(map(len, sample)) <= 2000


def test_the_fast_encoder_is_chosen_for_a_trained_tokenizer_and_exact(trained):
    choice = choose_encoder(trained, TEXTS)
    assert choice.value == "tiktoken", choice.reason
    fast = make_encoder(trained, "tiktoken")
    for text in [*TEXTS, *AWKWARD]:
        assert fast(text) == trained.encode(text)


@given(st.text(st.sampled_from("ae '\"\n\r\t 019_=-éß中🎉sStT"), max_size=60))
def test_the_fast_encoder_is_exact_on_short_mixtures(text):
    tokenizer = train_tokenizer(TEXTS[:3], 400)
    assert make_encoder(tokenizer, "tiktoken")(text) == tokenizer.encode(text)


def test_a_run_of_spaces_that_stops_the_regex_engine_is_encoded_the_slow_way(trained):
    for text in (" " * 1_000_000 + "x", " \t" * 500_000 + "x"):
        assert make_encoder(trained, "tiktoken")(text) == trained.encode(text)


def test_long_runs_of_other_characters_do_not_stop_the_fast_encoder(trained):
    for run in ("é", "=", "\n "):
        text = run * 700_000 + "!"
        assert make_encoder(trained, "tiktoken")(text) == trained.encode(text)


def changed(tokenizer, change):
    spec = json.loads(tokenizer.spec)
    change(spec)
    return Tokenizer(json.dumps(spec))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda spec: spec.update(normalizer={"type": "Lowercase"}), "normalises text"),
        (
            lambda spec: spec["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
            "not one regex and bytes",
        ),
        (lambda spec: spec["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"), "not one regex and bytes"),
        (lambda spec: spec["model"].update(dropout=0.1), "uses dropout"),
        (lambda spec: spec["model"]["merges"].reverse(), "merges are not those"),
        (lambda spec: spec["model"]["merges"].pop(), "merges are not those"),
        (lambda spec: spec["added_tokens"][0].update(special=False), "are not special"),
    ],
)
def test_where_the_fast_encoder_would_differ_it_is_not_chosen(trained, change, reason):
    choice = choose_encoder(changed(trained, change), [])
    assert choice.value == "tokenizers"
    assert reason in choice.reason


def test_a_model_that_is_not_bpe_is_encoded_by_tokenizers():
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer = with_end_token(model)
    assert choose_encoder(tokenizer, []).reason == "the model is WordLevel, not BPE"
    assert make_encoder(tokenizer, "tokenizers")("a") == [1]


def test_a_difference_on_the_given_documents_is_found(trained, monkeypatch):
    monkeypatch.setattr("data.encode.make_encoder", lambda *_: lambda text: [0])
    choice = choose_encoder(trained, TEXTS[:1])
    assert choice.value == "tokenizers"
    assert "other ids" in choice.reason


def spelled(token):
    return "".join(byte_alphabet()[byte] for byte in token)


def bytes_and(*tokens):
    return {bytes([byte]): byte for byte in range(256)} | {token: 256 + i for i, token in enumerate(tokens)}


def test_merges_come_from_ranks():
    assert merges_of(bytes_and(b"ab", b"abc", b"cd")) == [(b"a", b"b"), (b"ab", b"c"), (b"c", b"d")]
    assert merges_of(bytes_and(b"bc", b"ab", b"abc")) == [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc")]
    assert merges_of(bytes_and(b"xyz")) == []


@given(
    st.lists(st.binary(min_size=2, max_size=5).map(lambda b: bytes(97 + c % 3 for c in b)), unique=True, max_size=12)
)
def test_merges_encode_every_text_as_ranks_do(tokens):
    """Any set of tokens at all, reachable or not, against tiktoken itself."""
    ranks = bytes_and(*tokens)
    theirs = tiktoken.Encoding("theirs", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens={})
    vocab = {spelled(token): rank for token, rank in ranks.items()}
    merges = [(spelled(a), spelled(b)) for a, b in merges_of(ranks)]
    ours = byte_level_bpe(vocab, merges, SPLIT, ignore_merges=True)
    for text in ("abcabcabc", "aabbccaabbcc", "cbacba", "aaaaaaaaa", "abacabadabacaba", "ccbbaaccbbaa bbbbb aca"):
        assert ours.encode(text).ids == theirs.encode_ordinary(text)


@pytest.fixture
def ranks_file(tmp_path, trained):
    spec = json.loads(trained.spec)
    table = {char: byte for byte, char in byte_alphabet().items()}
    ranks = {
        bytes(table[char] for char in token): rank
        for token, rank in spec["model"]["vocab"].items()
        if token != "<|endoftext|>"
    }
    ranks[b"unreachable"] = len(ranks)
    path = tmp_path / "cl100k_tiny.tiktoken"
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks.items()]
    path.write_text("\n".join(lines) + "\n")
    return path, ranks


def test_a_tiktoken_file_gives_tiktokens_own_ids(ranks_file):
    path, ranks = ranks_file
    tokenizer = load_any(str(path))
    own = tiktoken.Encoding("own", pat_str=TIKTOKEN_SPLITS["cl100k"], mergeable_ranks=ranks, special_tokens={})
    for text in [*TEXTS, *AWKWARD, "unreachable reach unreachable", "xunreachable"]:
        assert tokenizer.encode(text) == own.encode_ordinary(text)
    assert tokenizer.eod_id == len(ranks)
    assert choose_encoder(tokenizer, TEXTS).value == "tiktoken"


def test_gpt2_files_and_tokenizer_json_and_folders_load_the_same(tmp_path):
    tokenizer = train_tokenizer(TEXTS[:5], 500)
    spec = json.loads(tokenizer.spec)
    (tmp_path / "encoder.json").write_text(json.dumps(spec["model"]["vocab"] | {"<|endoftext|>": 499}))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
    (tmp_path / "vocab.bpe").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    gpt2 = load_any(str(tmp_path))
    assert (gpt2.vocab_size, gpt2.eod_id) == (500, 499)
    ranks = {token: rank for rank, token in enumerate(sorted(bytes_and(), key=spec_order(spec)))}
    for a, b in (merge.split(" ") for merge in merges):
        ranks[unspelled(a) + unspelled(b)] = len(ranks)
    reference = tiktoken.Encoding("r50k", pat_str=GPT2_SPLIT, mergeable_ranks=ranks, special_tokens={})
    for text in [*TEXTS, *AWKWARD]:
        assert gpt2.encode(text) == reference.encode_ordinary(text)
    assert choose_encoder(gpt2, TEXTS).value == "tiktoken"
    (tmp_path / "sub").mkdir()
    gpt2.save(tmp_path / "sub" / "tokenizer.json")
    for name in ("sub", "sub/tokenizer.json"):
        assert load_any(str(tmp_path / name)).fingerprint == gpt2.fingerprint
    assert load_any("bytes").vocab_size == 257


def spec_order(spec):
    return lambda token: spec["model"]["vocab"][spelled(token)]


def unspelled(token):
    table = {char: byte for byte, char in byte_alphabet().items()}
    return bytes(table[char] for char in token)


@pytest.mark.parametrize("name", ["r50k", "cl100k", "o200k"])
def test_the_split_rules_are_those_that_tiktoken_publishes(name, monkeypatch):
    """The published pattern and ours cut texts alike in a third regex engine."""
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
    published = getattr(openai_public, f"{name}_base")()["pat_str"]
    for text in [*TEXTS, *AWKWARD]:
        assert regex.findall(TIKTOKEN_SPLITS[name].replace(r"\z", r"\Z"), text) == regex.findall(published, text)


def test_an_end_token_of_the_vocabulary_is_used_and_a_missing_one_added(tmp_path):
    model = byte_level_bpe({char: byte for byte, char in byte_alphabet().items()}, [], SPLIT)
    model.save(str(tmp_path / "none.json"))
    assert load_any(str(tmp_path / "none.json")).eod_id == 256
    model.add_special_tokens(["<s>", "</s>"])
    model.enable_truncation(3)
    model.save(str(tmp_path / "other.json"))
    tokenizer = load_any(str(tmp_path / "other.json"))
    assert (tokenizer.eod_token, tokenizer.eod_id) == ("</s>", 257)
    assert len(tokenizer.encode("0123456789</s>")) > 10


def test_the_settings_beside_a_tokenizer_say_what_ends_a_text(tmp_path):
    """As transformers writes them of BERT, whose vocabulary has none of the usual names."""
    pieces = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "a"]
    model = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(dict(zip(pieces, range(6), strict=True)), unk_token="[UNK]")
    )
    path = tmp_path / "tokenizer.json"
    model.save(str(path))
    with pytest.raises(DataError, match=r"tokenizer\.json: has no end-of-document token"):
        Tokenizer.load(path)
    for settings in ({"sep_token": "[SEP]"}, {"eos_token": {"content": "[SEP]"}, "sep_token": "[MASK]"}):
        path.with_name("tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = Tokenizer.load(path).with_special_tokens(["[NEW]"])
        assert (tokenizer.eod_token, tokenizer.eod_id) == ("[SEP]", 3)
    tokenizer.save(path)
    path.with_name("tokenizer_config.json").write_text(tokenizer.settings)
    assert Tokenizer.load(path).eod_id == 3
    for damaged in ("{", "[]", '{"eos_token": {"a": 1}}', '{"eos_token": 3}'):
        path.with_name("tokenizer_config.json").write_text(damaged)
        with pytest.raises(DataError, match=r"tokenizer_config\.json: not the settings of a tokenizer"):
            Tokenizer.load(path)


def test_the_fingerprint_is_of_the_content_not_its_spacing(trained):
    assert Tokenizer(json.dumps(json.loads(trained.spec), indent=3)).fingerprint == trained.fingerprint
    spec = json.loads(trained.spec)
    spec["model"]["merges"][-1], spec["model"]["merges"][-2] = spec["model"]["merges"][-2], spec["model"]["merges"][-1]
    assert Tokenizer(json.dumps(spec)).fingerprint != trained.fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", None, "no such file or folder"),
        ("a.model", b"\x0a\x0e\x00", "unknown format .* give a tokenizer.json"),
        ("a.json", b'{"a": 1}', "unknown format"),
        ("mine.tiktoken", b"", "its name begins with none of gpt2, r50k, p50k, cl100k, o200k"),
        ("gpt2.tiktoken", b"IQ== 0\n? 1\n", r"gpt2\.tiktoken:2: not a line of base64 and rank"),
        ("gpt2.tiktoken", b"IQ== 0\n", "255 of the 256 single bytes are missing"),
        ("folder/readme.txt", b"", r"holds neither tokenizer\.json nor .*it holds readme\.txt"),
        ("folder/vocab.json", b"[]", r"holds neither"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_explained(tmp_path, name, content, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_any(str(path if path.parent == tmp_path else path.parent))


def test_a_vocabulary_smaller_than_the_bytes_is_refused():
    with pytest.raises(DataError, match="--vocab-size 256: at least 257 are needed"):
        train_tokenizer(TEXTS, 256)


@pytest.mark.parametrize("name", ["gpt2", "cl100k", "o200k"])
def test_every_named_split_is_exact_in_both_engines(name):
    vocab = {spelled(token): rank for token, rank in bytes_and().items()}
    tokenizer = with_end_token(byte_level_bpe(vocab, [], TIKTOKEN_SPLITS[name]))
    assert choose_encoder(tokenizer, AWKWARD).value == "tiktoken"
