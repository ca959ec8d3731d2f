"""Where a tokenizer comes from: trained on the sources, or loaded from one of the formats people have."""

import base64
import binascii
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers

from config import DataError
from data.clean import Normalisation, clean
from data.documents import ReadOptions, Unit, read
from data.encode import GPT2_SPLIT, merges_of
from data.tokenizer import TOKENIZER_NAME, Tokenizer, byte_alphabet, byte_level_bpe, byte_tokenizer, with_end_token

BYTES = "bytes"
SMALLEST_VOCAB = 257
SAMPLE_UNITS = 256

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
SPLIT = f"{_WORDS}|{_SPACES}"
"""Words with the character before them, digits by threes, punctuation and white space by runs: like GPT-4's cl100k."""

_O200K_LETTERS = r"[^\r\n\p{L}\p{N}]?%s(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
TIKTOKEN_SPLITS = {
    "gpt2": GPT2_SPLIT,
    "r50k": GPT2_SPLIT,
    "p50k": GPT2_SPLIT,
    "cl100k": rf"{_WORDS}|\s+\z|{_SPACES}",
    "o200k": "|".join(
        (
            _O200K_LETTERS % r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            _O200K_LETTERS % r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*",
            _SPACES,
        )
    ),
}
"""Split rule by the beginning of a ranks file's name: the file itself does not hold it."""


def check_vocab_size(vocab_size: int) -> None:
    """Raises DataError if a byte-level BPE of this size cannot be."""
    if vocab_size < SMALLEST_VOCAB:
        raise DataError(f"--vocab-size {vocab_size}: at least {SMALLEST_VOCAB} are needed, 256 bytes and <|endoftext|>")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE; `<|endoftext|>` gets the last id. Fewer tokens than asked for if the text is short."""
    from tokenizers import pre_tokenizers, trainers

    check_vocab_size(vocab_size)
    model = byte_level_bpe({}, [], SPLIT)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    model.train_from_iterator(texts, trainer)
    return with_end_token(model)


def sample_texts(units: list[Unit], options: ReadOptions, normalise: Normalisation, sample_bytes: int) -> Iterator[str]:
    """Cleaned documents from the head of evenly spread units, each unit's part in proportion to its size."""
    step = -(-len(units) // SAMPLE_UNITS)
    chosen = units[::step]
    total = sum(unit.size for unit in chosen)
    for unit in chosen:
        share = sample_bytes * unit.size / total if unit.size else sample_bytes / len(chosen)
        for document in read(unit, options):
            text = clean(document.text, normalise)
            if text:
                yield text
            share -= len(text)
            if share <= 0:
                break


def load_any(name: str) -> Tokenizer:
    """Load a tokenizer.json, a folder with one, GPT-2's two files, a tiktoken ranks file, or `bytes`.

    An end-of-document token is added if there is none. Raises DataError for anything else.
    """
    if name == BYTES:
        return byte_tokenizer()
    path = Path(name)
    if not path.exists():
        raise DataError(f"--tokenizer {name}: no such file or folder")
    if path.is_dir():
        return _load_folder(path)
    return _load_ranks(path) if path.suffix == ".tiktoken" else _load_json(path)


def _load_folder(folder: Path) -> Tokenizer:
    if (folder / TOKENIZER_NAME).is_file():
        return _load_json(folder / TOKENIZER_NAME)
    for vocab, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
        if (folder / vocab).is_file() and (folder / merges).is_file():
            return _load_gpt2(folder / vocab, folder / merges)
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise DataError(
        f"--tokenizer {folder}: holds neither {TOKENIZER_NAME} nor encoder.json + vocab.bpe nor vocab.json + merges.txt "
        f"(it holds {names})"
    )


def _load_json(path: Path) -> Tokenizer:
    try:
        model = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception for every malformed file
        raise DataError(
            f"--tokenizer {path}: unknown format ({error}); give a tokenizer.json, a folder with GPT-2's two files, or a "
            ".tiktoken ranks file"
        ) from error
    return with_end_token(model)


def _load_gpt2(vocab_path: Path, merges_path: Path) -> Tokenizer:
    try:
        vocab, merges = tokenizers.models.BPE.read_file(str(vocab_path), str(merges_path))
        return with_end_token(byte_level_bpe(vocab, merges, GPT2_SPLIT))
    except Exception as error:  # tokenizers raises bare Exception for every malformed file
        raise DataError(
            f"--tokenizer {vocab_path.parent}: {vocab_path.name} and {merges_path.name}: {error}"
        ) from error


def _load_ranks(path: Path) -> Tokenizer:
    """Lines of base64 bytes and rank. The BPE's merges are derived from the ranks, and the id is the rank."""
    split = next((rule for start, rule in TIKTOKEN_SPLITS.items() if path.name.startswith(start)), None)
    if split is None:
        raise DataError(
            f"--tokenizer {path}: a ranks file does not say how text is split, and its name begins with none of "
            f"{', '.join(TIKTOKEN_SPLITS)}; rename it, or convert it to a tokenizer.json"
        )
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise DataError(f"--tokenizer {path}:{number}: not a line of base64 and rank") from error
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise DataError(f"--tokenizer {path}: {len(missing)} of the 256 single bytes are missing")
    alphabet = byte_alphabet()

    def spell(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    vocab = {spell(token): rank for token, rank in ranks.items()}
    merges = [(spell(a), spell(b)) for a, b in merges_of(ranks)]
    return with_end_token(byte_level_bpe(vocab, merges, split, ignore_merges=True))
