"""Text to token ids and back: a tokenizer kept as `tokenizer.json` (the Hugging Face `tokenizers` format)."""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from config import DataError
from data.files import write_atomically
from data.manifest import canonical_json

TOKENIZER_NAME = "tokenizer.json"
SETTINGS_NAME = "tokenizer_config.json"
"""Of transformers, beside a tokenizer.json, which itself does not say what ends a text."""
END_OF_DOCUMENT = "<|endoftext|>"
END_NAMES = (END_OF_DOCUMENT, "<|end_of_text|>", "<|endofdocument|>", "<eos>", "</s>")


class Tokenizer:
    """A vocabulary and its rules. Special tokens that occur in a text are encoded as the ordinary text they are."""

    def __init__(self, spec: str, end_token: str = "") -> None:
        """`spec` is the content of a tokenizer.json that has `end_token`, or one of `END_NAMES`; see `with_end_token`."""
        self.spec = spec
        self._model = tokenizers.Tokenizer.from_str(spec)
        self._model.encode_special_tokens = True
        self._model.no_truncation()
        self._model.no_padding()
        vocab = self._model.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocab.values()) + 1
        """Rows of the smallest embedding table that holds every id."""
        self.eod_token: str = next(name for name in (end_token, *END_NAMES) if name in vocab)
        self.eod_id: int = vocab[self.eod_token]
        """The token that ends each document."""

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """Read the tokenizer.json of a dataset, a checkpoint or a Hugging Face folder, whose settings beside it say what ends a
        text. Raises DataError if it is missing or is not one."""
        end_token = _end_token(Path(path).with_name(SETTINGS_NAME))
        try:
            return cls(Path(path).read_text(encoding="utf-8"), end_token)
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file; it belongs to the dataset or checkpoint it lies in") from error
        except StopIteration as error:
            raise DataError(
                f"{path}: has no end-of-document token (one of {', '.join(filter(None, (end_token, *END_NAMES)))})"
            ) from error
        except Exception as error:  # tokenizers raises bare Exception for every malformed file
            raise DataError(f"{path}: not a tokenizer.json that `tokenizers` can read: {error}") from error

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content, in hex, whatever its spacing and key order."""
        return hashlib.sha256(canonical_json(json.loads(self.spec)).encode()).hexdigest()

    @cached_property
    def text_fingerprint(self) -> str:
        """SHA-256, in hex, of what decides the ids of a text: neither special tokens, which no text becomes, nor the
        template that puts them around it."""
        spec = json.loads(self.spec)
        rules = {part: spec[part] for part in ("normalizer", "pre_tokenizer", "model")}
        rules["added_tokens"] = [token for token in spec["added_tokens"] if not token["special"]]
        return hashlib.sha256(canonical_json(rules).encode()).hexdigest()

    @cached_property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of all special tokens."""
        return tuple(token["id"] for token in json.loads(self.spec)["added_tokens"] if token["special"])

    @cached_property
    def byte_lengths(self) -> NDArray[np.int64] | None:
        """UTF-8 bytes of text that each id stands for [V], 0 of special tokens. None unless the vocabulary is byte-level: how
        much text another token stands for depends on its neighbours and on what the tokenizer leaves out."""
        if (json.loads(self.spec).get("decoder") or {}).get("type") != "ByteLevel":
            return None
        lengths_V = np.zeros(self.vocab_size, np.int64)
        for piece, number in self._model.get_vocab(with_added_tokens=False).items():
            lengths_V[number] = len(piece)
        for number, token in self._model.get_added_tokens_decoder().items():
            lengths_V[number] = 0 if token.special else len(token.content.encode())
        return lengths_V

    @cached_property
    def special_names(self) -> tuple[str, ...]:
        """Names of all special tokens."""
        return tuple(token["content"] for token in json.loads(self.spec)["added_tokens"] if token["special"])

    def ids_of(self, names: Sequence[str]) -> list[int]:
        """Ids of tokens by name. All must be in the vocabulary."""
        vocab = self._model.get_vocab(with_added_tokens=True)
        return [vocab[name] for name in names]

    def with_special_tokens(self, names: Sequence[str]) -> "Tokenizer":
        """The same tokenizer with these special tokens: its own where it has them, new ones above its last id, in order.

        Raises DataError if there is no room above.
        """
        special = {self._model.id_to_token(number) for number in self.special_ids}
        missing = [name for name in names if name not in special]
        if not missing:
            return self
        model = tokenizers.Tokenizer.from_str(self.spec)
        new = [name for name in missing if model.token_to_id(name) is None]
        model.add_special_tokens(missing)
        for name, expected in zip(new, range(self.vocab_size, self.vocab_size + len(new)), strict=True):
            if model.token_to_id(name) != expected:
                raise DataError(
                    f"the tokenizer's ids have gaps: {name} would get id {model.token_to_id(name)}, not {expected}; "
                    "prepare the dataset with a tokenizer whose ids are 0, 1, 2, ... without gaps"
                )
        return Tokenizer(model.to_str(), self.eod_token)

    def lowercased(self) -> "Tokenizer":
        """The same tokenizer behind a step that makes capitals small."""
        model = tokenizers.Tokenizer.from_str(self.spec)
        own = [model.normalizer] if model.normalizer else []
        model.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Lowercase(), *own])
        return Tokenizer(model.to_str(), self.eod_token)

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer.json's own template, if it has one, puts before and after a text."""
        text, framed = self.encode("a"), self._model.encode("a", add_special_tokens=True).ids
        begin = next(i for i in range(len(framed)) if framed[i : i + len(text)] == text)
        return framed[:begin], framed[begin + len(text) :]

    def name_of(self, number: int) -> str | None:
        """The token with an id; None if there is none."""
        return self._model.id_to_token(number)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without an end-of-document token."""
        return self._model.encode(text, add_special_tokens=False).ids

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text and, for each, the characters that it stands for."""
        encoding = self._model.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def encode_with(self, text: str, names: Sequence[str]) -> list[int]:
        """Token ids of a text in which these special tokens stand for themselves."""
        ids = dict(zip(names, self.ids_of(names), strict=True))
        pieces = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
        return [id_ for piece in pieces for id_ in ([ids[piece]] if piece in ids else self.encode(piece))]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts, on all cores."""
        return [encoding.ids for encoding in self._model.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens by name. Bytes that are not UTF-8 become U+FFFD."""
        return self._model.decode([int(i) for i in ids], skip_special_tokens=False)

    @property
    def settings(self) -> str:
        """Content of SETTINGS_NAME, with which `load` finds the end token of this tokenizer again."""
        return json.dumps({"eos_token": self.eod_token})

    def save(self, path: Path | str) -> None:
        """Write the tokenizer.json, atomically."""
        write_atomically(Path(path), self.spec)


def _end_token(path: Path) -> str:
    """What ends a text by a tokenizer_config.json; empty if there is none or it does not say. Raises DataError if it is damaged."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        end = settings.get("eos_token") or settings.get("sep_token") or ""
        return end if isinstance(end, str) else end["content"]
    except FileNotFoundError:
        return ""
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise DataError(f"{path}: not the settings of a tokenizer ({error}); copy the file again") from error


def with_end_token(model: tokenizers.Tokenizer) -> Tokenizer:
    """Make a tokenizer ours: its own end-of-document token as a special token, or a new one with the next free id."""
    model.no_truncation()
    model.no_padding()
    vocab = model.get_vocab(with_added_tokens=True)
    model.add_special_tokens([next((name for name in END_NAMES if name in vocab), END_OF_DOCUMENT)])
    return Tokenizer(model.to_str())


def byte_level_bpe(
    vocab: dict[str, int], merges: list[tuple[str, str]], split: str | None, **options: Any
) -> tokenizers.Tokenizer:
    """A byte-level BPE that splits text by a regex first; `split=None` does not split.

    Vocabulary and merges are spelled in the printable alphabet of `byte_alphabet`.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers

    model = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, **options))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), to_bytes]) if split else to_bytes
    )
    model.decoder = decoders.ByteLevel()
    return model


def byte_alphabet() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2, Radford et al. 2019).

    Printable Latin-1 stands for itself; the others take the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + n) for n, byte in enumerate(others)}


def byte_tokenizer() -> Tokenizer:
    """256 bytes and `<|endoftext|>` (id 256): the id of a byte is its value."""
    return with_end_token(byte_level_bpe({char: byte for byte, char in byte_alphabet().items()}, [], None))
