"""Rows of fixed length over the shards of one or more datasets.

A dataset is the concatenation of its shards' tokens. Row r is its tokens r * T to r * T + T, both included: T inputs
and, one further, T targets. Neighbouring rows share one token, so that an epoch predicts each token once; only the
first token and up to T at the end are never predicted.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from config import DataError
from data.files import most_open_files
from data.manifest import Split


class TokenFile(Protocol):
    """What is needed of a shard."""

    @property
    def prefix(self) -> Path:
        """Path without `.bin`."""

    @property
    def token_count(self) -> int: ...

    @property
    def document_count(self) -> int: ...

    @property
    def tokens(self) -> NDArray[np.integer]:
        """All token ids, 1-D; a mapped file, as pointers are."""

    @property
    def pointers(self) -> NDArray[np.int64]:
        """Byte position of each document, ascending. May be unaligned, so that only single elements are cheap."""


MOST_SHARDS_MAPPED = 1 << 14
"""Of the 65,530 maps that Linux gives a process: two for each shard."""

REMEDIES = {
    "train": "prepare more text",
    "valid": "prepare again with a larger --split-valid (or --split-valid-tail), set validation.every_steps=0",
}


class _Mapped:
    """A shard's files, mapped until this is forgotten; the index when it is first asked for."""

    def __init__(self, shard: TokenFile, span: int) -> None:
        self._shard = copy(shard)
        self.tokens = self._shard.tokens
        self.windows = as_strided(
            self.tokens, (max(self.tokens.size - span + 1, 0), span), 2 * self.tokens.strides, writeable=False
        )
        """All runs of `span` tokens, as a view."""

    @cached_property
    def pointers(self) -> NDArray[np.int64]:
        return self._shard.pointers


class Rows:
    """Spans of S = T + 1 tokens in the shards of datasets.

    An address is a pair (shard, first token in the shard); shards are numbered through all datasets.
    Raises DataError if a dataset has no whole row.
    """

    def __init__(
        self, datasets: Sequence[Sequence[TokenFile]], row_length: int, vocab_size: int, split: Split = "train"
    ) -> None:
        self.row_length = row_length
        self.vocab_size = vocab_size
        shards = [shard for shards in datasets for shard in shards]
        self._shards = shards
        # Two files for each shard, for training and for validation: half of all that may be open.
        most_mapped = min(MOST_SHARDS_MAPPED, most_open_files() // 8)
        self._mapped = lru_cache(most_mapped)(lambda number: _Mapped(shards[number], row_length + 1))
        self._sizes = [shard.token_count for shard in shards]
        """Tokens of each shard."""
        sizes = np.array(self._sizes, np.int64)
        self._shard_start = np.cumsum(sizes) - sizes
        self._first_shard_K = [0, *accumulate(map(len, datasets))]
        tokens_K = np.add.reduceat(sizes, self._first_shard_K[:-1])
        self._dataset_start_K = np.cumsum(tokens_K) - tokens_K
        self.count_K = (tokens_K - 1) // row_length
        """Rows of each dataset."""
        self.names = [str(shards[0].prefix.parent) for shards in datasets]
        for name, tokens, count in zip(self.names, tokens_K, self.count_K, strict=True):
            if count < 1:
                raise DataError(
                    f"{name}: its {split} split has {tokens:,} tokens, but one row reads {row_length + 1:,}; "
                    f"{REMEDIES[split]}, or lower data.row_length"
                )

    def locate(self, dataset_N: NDArray[np.int64], row_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Addresses [N, 2] of rows."""
        position_N = self._dataset_start_K[dataset_N] + row_N * self.row_length
        shard_N = np.searchsorted(self._shard_start, position_N, side="right") - 1
        return np.stack([shard_N, position_N - self._shard_start[shard_N]], axis=1)

    def read(self, address_N2: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token ids [N, S] of the rows at addresses.

        Raises DataError at a token id outside the model's vocabulary.
        """
        shards, begins = address_N2.T.tolist()
        windows = self._mapped(shards[0]).windows
        if len(set(shards)) == 1 and max(begins) < len(windows):
            token_NS = windows[address_N2[:, 1]]
        else:
            spans = [self._span(shard, begin) for shard, begin in zip(shards, begins, strict=True)]
            token_NS = np.concatenate(spans).reshape(len(spans), -1)
        if self._is_outside_vocabulary(token_NS):
            raise self._outside_vocabulary(address_N2)
        return token_NS.astype(np.int64)

    def read_part(self, shard: int, begin: int, end: int) -> NDArray[np.int64]:
        """Token ids of a shard from `begin` to `end`. Raises DataError at one outside the model's vocabulary."""
        token_N = self._mapped(shard).tokens[begin:end]
        if token_N.size and self._is_outside_vocabulary(token_N):
            raise self._outside_vocabulary_at(shard, begin, end)
        return token_N.astype(np.int64)

    def describe(self, shard: int, begin: int) -> str:
        """An address in words; documents are counted from 0 in their shard."""
        shard, number, place = self.document_at(shard, begin)
        return f"{self._shards[shard].prefix}.bin from token {place:,} in document {number:,} on"

    def document_at(self, shard: int, place: int) -> tuple[int, int, int]:
        """Shard, number in it and place there of the document that holds a token. The place is counted from the start of
        `shard` and may lie in a later one."""
        while place >= self._sizes[shard]:
            shard, place = shard + 1, place - self._sizes[shard]
        mapped = self._mapped(shard)
        return shard, bisect_right(mapped.pointers, place * mapped.tokens.itemsize) - 1, place

    def document_bounds(self, shard: int, number: int) -> tuple[int, int]:
        """First token of a document in its shard, and the one after its last."""
        mapped = self._mapped(shard)
        pointers, itemsize = mapped.pointers, mapped.tokens.itemsize
        end = int(pointers[number + 1]) // itemsize if number + 1 < len(pointers) else self._sizes[shard]
        return int(pointers[number]) // itemsize, end

    def documents_beside(self, shard: int) -> range:
        """Numbers of all documents of the shard's dataset, counted through all shards."""
        return self._documents_of(bisect_right(self._first_shard_K, shard) - 1)

    def document_number(self, shard: int, number: int) -> int:
        """Number of a shard's document, counted through all shards."""
        return self._documents_before[shard] + number

    def document_numbered(self, number: int) -> tuple[int, int]:
        """Shard and number in it: the inverse of `document_number`."""
        shard = bisect_right(self._documents_before, number) - 1
        return shard, number - self._documents_before[shard]

    @property
    def documents_K(self) -> list[int]:
        """Documents of each dataset."""
        return [len(self._documents_of(dataset)) for dataset in range(len(self.count_K))]

    def _documents_of(self, dataset: int) -> range:
        first, end = self._first_shard_K[dataset : dataset + 2]
        return range(self._documents_before[first], self._documents_before[end])

    @cached_property
    def _documents_before(self) -> list[int]:
        """Documents in all shards before each, and in all of them."""
        return [0, *accumulate(shard.document_count for shard in self._shards)]

    def _is_outside_vocabulary(self, tokens: NDArray[np.integer]) -> bool:
        return bool(tokens.view(f"u{tokens.itemsize}").max() >= self.vocab_size)  # -1, read as unsigned, is huge

    def document_starts(self, address_N2: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which targets of the rows are the first token of a document: their places in the flattened targets [N * T]."""
        starts: list[int] = []
        place = 0
        for row_shard, row_begin in address_N2.tolist():
            for shard, begin, end in self._pieces(row_shard, row_begin + 1, self.row_length):
                mapped = self._mapped(shard)
                pointers, itemsize = mapped.pointers, mapped.tokens.itemsize
                low = bisect_left(pointers, begin * itemsize)
                high = bisect_left(pointers, end * itemsize, low)
                starts += [pointer // itemsize - begin + place for pointer in pointers[low:high].tolist()]
                place += end - begin
        return np.array(starts, np.int64)

    def _span(self, shard: int, begin: int) -> NDArray[np.integer]:
        windows = self._mapped(shard).windows
        if begin < len(windows):
            return windows[begin]
        pieces = self._pieces(shard, begin, self.row_length + 1)
        return np.concatenate([self._mapped(piece).tokens[first:end] for piece, first, end in pieces])

    def _pieces(self, shard: int, begin: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(shard, begin, end) of the runs that make up `count` tokens: one, or more where shards meet."""
        while count:
            end = min(begin + count, self._sizes[shard])
            yield shard, begin, end
            count -= end - begin
            shard, begin = shard + 1, 0

    def _outside_vocabulary(self, address_N2: NDArray[np.int64]) -> DataError:
        """The message for the first token id that the model has no embedding for."""
        for row_shard, row_begin in address_N2.tolist():
            for shard, begin, end in self._pieces(row_shard, row_begin, self.row_length + 1):
                if self._is_outside_vocabulary(self._mapped(shard).tokens[begin:end]):
                    return self._outside_vocabulary_at(shard, begin, end)
        raise AssertionError("no token id is outside the vocabulary")

    def _outside_vocabulary_at(self, shard: int, begin: int, end: int) -> DataError:
        tokens = self._mapped(shard).tokens[begin:end].astype(np.int64)
        wrong = np.flatnonzero((tokens < 0) | (tokens >= self.vocab_size))
        return DataError(
            f"{self._shards[shard].prefix}.bin: token id {tokens[wrong[0]]:,} at position {begin + wrong[0]:,}, but "
            f"model.vocab_size is {self.vocab_size:,}; raise model.vocab_size to the tokenizer's size, or prepare the "
            "dataset again with the model's tokenizer"
        )
