"""Cleaning of one document: the same for every kind of source, so that equal texts are equal bytes."""

import re
import unicodedata
from typing import Literal

import xxhash

Normalisation = Literal["nfc", "nfkc", "none"]

_LINE_END = re.compile("\r+\n")
_UNWANTED = re.compile("[\x00\ud800-\udfff]")


def clean(text: str, normalise: Normalisation = "nfc") -> str:
    """Windows line ends become `\\n`, NUL and lone surrogates go, the Unicode form becomes the one asked for.

    A text of nothing but white space becomes empty.
    """
    if not text.isascii() or "\x00" in text:
        text = _UNWANTED.sub("", text)
        if normalise != "none":
            text = unicodedata.normalize("NFC" if normalise == "nfc" else "NFKC", text)
    if "\r\n" in text:
        text = _LINE_END.sub("\n", text)
    return text if text.strip() else ""


def document_hash(encoded: bytes) -> int:
    """64-bit hash of a cleaned document: decides its split and whether it is a duplicate of another."""
    return xxhash.xxh3_64_intdigest(encoded)


def is_valid(hashed: int, valid_fraction: float) -> bool:
    """Whether a document is held out: a property of its text alone, whatever else is prepared with it."""
    return hashed < int(valid_fraction * 2**64)
