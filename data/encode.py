"""The fastest exact encoder for a tokenizer: tiktoken built from its merges, where that provably gives the same ids."""

import json
import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, Literal

from config import Choice
from data.tokenizer import Tokenizer, byte_alphabet

Encoder = Callable[[str], list[int]]
EncoderName = Literal["tiktoken", "tokenizers"]
Pair = tuple[bytes, bytes]

GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `ByteLevel(use_regex=True)` splits by (GPT-2, Radford et al. 2019)."""

LONG_RUN = re.compile(r"\s{50000}")
"""The regex engine of tiktoken panics after a million steps back, which a run of as many spaces takes."""


def choose_encoder(tokenizer: Tokenizer, documents: Iterable[str]) -> Choice[EncoderName]:
    """tiktoken if it is exact for this tokenizer, else tokenizers, with the reason.

    The merges are proven equal (see `merges_of`); the regex engines are compared on every character outside the large
    blocks of one kind and on the given documents.
    """
    spec = json.loads(tokenizer.spec)
    obstacle = _obstacle(spec)
    if obstacle:
        return Choice("tokenizers", obstacle)
    fast = make_encoder(tokenizer, "tiktoken")
    texts = [*_probes(), *documents]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        if fast(text) != ids:
            return Choice("tokenizers", f"tiktoken gives other ids for {text[:40]!r}")
    return Choice("tiktoken", f"same merges, same ids on {len(texts):,} texts")


def make_encoder(tokenizer: Tokenizer, name: EncoderName) -> Encoder:
    """A function from text to ids. `tiktoken` only where `choose_encoder` chose it."""
    if name == "tokenizers":
        return tokenizer.encode
    import tiktoken

    spec = json.loads(tokenizer.spec)
    split = split_regex(spec["pre_tokenizer"])
    assert split is not None
    encoding = tiktoken.Encoding("own", pat_str=split, mergeable_ranks=_ranks(spec), special_tokens={})

    def encode(text: str) -> list[int]:
        if len(text) > 50_000 and LONG_RUN.search(text):
            return tokenizer.encode(text)
        return encoding.encode_ordinary(text)

    return encode


def merges_of(ranks: dict[bytes, int]) -> list[Pair]:
    """The merges that byte-pair encoding by ranks can ever make, in order of rank.

    tiktoken joins the neighbours whose union has the lowest rank. Inside any text, until something joins across its
    borders, a token's bytes evolve as they would alone; so the pair that becomes the token is always the last pair of
    encoding its bytes alone. A list of merges therefore encodes every text as the ranks do if it is this list.
    Single bytes, and tokens whose bytes never join into them, have no merge.
    """
    pairs = ((token, _last_pair(token, ranks)) for token in sorted(ranks, key=lambda token: ranks[token]))
    return [pair for _, pair in pairs if pair]


def _last_pair(token: bytes, ranks: dict[bytes, int]) -> Pair | None:
    """The two parts that remain before the token is whole, or None if it never is."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        candidates = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not candidates:
            return None
        _, i = min(candidates)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def _obstacle(spec: dict[str, Any]) -> str:
    """Why tiktoken cannot stand in for a tokenizer.json; empty if it can."""
    model = spec["model"]
    if model.get("type") != "BPE":
        return f"the model is {model.get('type')}, not BPE"
    rules = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if extra := [rule for rule in rules if model.get(rule)]:
        return f"the model uses {extra[0]}"
    if spec.get("normalizer"):
        return "the tokenizer normalises text"
    if ordinary := [token["content"] for token in spec["added_tokens"] if not token["special"]]:
        return f"{len(ordinary)} added tokens are not special ({ordinary[0]!r} is one)"
    if split_regex(spec["pre_tokenizer"]) is None:
        return "its pre-tokeniser is not one regex and bytes"
    return _merge_obstacle(model, _ranks(spec))


def _merge_obstacle(model: dict[str, Any], ranks: dict[bytes, int]) -> str:
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        return f"{len(missing)} of the 256 bytes are not in the vocabulary"
    decode = _to_bytes()
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    merges = [(decode(a), decode(b)) for a, b in pairs]
    if merges != merges_of(ranks):
        return "its merges are not those of byte-pair encoding by ids"
    if len(merges) + 256 != len(ranks) and not model.get("ignore_merges"):
        return "some tokens have no merge"
    return ""


def split_regex(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """The regex of a pre-tokeniser that cuts text into matches and spells them in bytes; None for any other kind."""
    match pre_tokenizer:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return GPT2_SPLIT
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return regex
    return None


def _ranks(spec: dict[str, Any]) -> dict[bytes, int]:
    """Bytes and id of each token that is not an added one."""
    decode, added = _to_bytes(), {token["content"] for token in spec["added_tokens"]}
    return {decode(token): id_ for token, id_ in spec["model"]["vocab"].items() if token not in added}


def _to_bytes() -> Callable[[str], bytes]:
    """From the printable alphabet to the bytes it stands for; a foreign character becomes the byte string of itself."""
    table = {char: bytes([byte]) for byte, char in byte_alphabet().items()}
    return lambda token: b"".join(table.get(char) or char.encode() for char in token)


def _probes() -> list[str]:
    """Every character between letters, digits, spaces and line ends, without the large blocks of one kind."""
    ideographs = (range(0x3400, 0x4DC0), range(0x4E00, 0xA000), range(0x17000, 0x18D00))
    hangul, surrogates_and_private, hieroglyphs = range(0xAC00, 0xD7A4), range(0xD800, 0xF900), range(0x12000, 0x14680)
    uniform = (*ideographs, hangul, surrogates_and_private, hieroglyphs)
    chars = [chr(point) for point in range(0x20000) if not any(point in block for block in uniform)]
    lines = [f"a{char} {char}1{char}\n{char}" for char in chars]
    return ["".join(lines[i : i + 1024]) for i in range(0, len(lines), 1024)]
