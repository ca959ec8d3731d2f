"""Rows of fixed length over the shards of one or more datasets.

A dataset is the concatenation of its shards' tokens. Row r is its tokens r * T to r * T + T, both included: T inputs
and, one further, T targets. Neighbouring rows share one token, so that an epoch predicts each token once; only the
first token and up to T at the end are never predicted.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from config import DataError
from data.manifest import Split


class TokenFile(Protocol):
    """What is needed of a shard."""

    @property
    def prefix(self) -> Path:
        """Path without `.bin`."""

    @property
    def tokens(self) -> NDArray[np.integer]:
        """All token ids, 1-D."""

    @property
    def pointers(self) -> NDArray[np.int64]:
        """Byte position of each document, ascending. May be unaligned, so that only single elements are cheap."""


REMEDIES = {
    "train": "prepare more text",
    "valid": "prepare again with a larger --split-valid (or --split-valid-tail), set validation.every_steps=0",
}


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
        self._shards = [shard for shards in datasets for shard in shards]
        self._tokens = [np.asarray(shard.tokens) for shard in self._shards]
        self._windows = [_windows(tokens, row_length + 1) for tokens in self._tokens]
        lengths = np.array([tokens.size for tokens in self._tokens], np.int64)
        self._shard_start = np.cumsum(lengths) - lengths
        tokens_K = np.array([sum(shard.tokens.size for shard in shards) for shards in datasets], np.int64)
        shards_K = [len(shards) for shards in datasets]
        self._shards_of_K = [range(end - count, end) for count, end in zip(shards_K, accumulate(shards_K), strict=True)]
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
        windows = self._windows[shards[0]]
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
        token_N = self._tokens[shard][begin:end]
        if token_N.size and self._is_outside_vocabulary(token_N):
            raise self._outside_vocabulary_at(shard, begin, end)
        return token_N.astype(np.int64)

    def document_at(self, shard: int, place: int) -> tuple[int, int, int]:
        """Shard, number in it and place there of the document that holds a token. The place is counted from the start of
        `shard` and may lie in a later one."""
        while place >= self._tokens[shard].size:
            shard, place = shard + 1, place - self._tokens[shard].size
        number = bisect_right(self._shards[shard].pointers, place * self._tokens[shard].itemsize) - 1
        return shard, number, place

    def document_bounds(self, shard: int, number: int) -> tuple[int, int]:
        """First token of a document in its shard, and the one after its last."""
        pointers, itemsize = self._shards[shard].pointers, self._tokens[shard].itemsize
        end = int(pointers[number + 1]) // itemsize if number + 1 < len(pointers) else self._tokens[shard].size
        return int(pointers[number]) // itemsize, end

    def documents_beside(self, shard: int) -> range:
        """Numbers of all documents of the shard's dataset, counted through all shards."""
        shards = next(shards for shards in self._shards_of_K if shard in shards)
        return range(self._documents_before[shards.start], self._documents_before[shards.stop])

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
        return [len(self.documents_beside(shards.start)) for shards in self._shards_of_K]

    @cached_property
    def _documents_before(self) -> list[int]:
        """Documents in all shards before each, and in all of them."""
        return [0, *accumulate(len(shard.pointers) for shard in self._shards)]

    def _is_outside_vocabulary(self, tokens: NDArray[np.integer]) -> bool:
        return bool(tokens.view(f"u{tokens.itemsize}").max() >= self.vocab_size)  # -1, read as unsigned, is huge

    def document_starts(self, address_N2: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which targets of the rows are the first token of a document: their places in the flattened targets [N * T]."""
        starts: list[int] = []
        place = 0
        for row_shard, row_begin in address_N2.tolist():
            for shard, begin, end in self._pieces(row_shard, row_begin + 1, self.row_length):
                pointers, itemsize = self._shards[shard].pointers, self._tokens[shard].itemsize
                low = bisect_left(pointers, begin * itemsize)
                high = bisect_left(pointers, end * itemsize, low)
                starts += [pointer // itemsize - begin + place for pointer in pointers[low:high].tolist()]
                place += end - begin
        return np.array(starts, np.int64)

    def _span(self, shard: int, begin: int) -> NDArray[np.integer]:
        if begin < len(self._windows[shard]):
            return self._windows[shard][begin]
        pieces = self._pieces(shard, begin, self.row_length + 1)
        return np.concatenate([self._tokens[piece][first:end] for piece, first, end in pieces])

    def _pieces(self, shard: int, begin: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(shard, begin, end) of the runs that make up `count` tokens: one, or more where shards meet."""
        while count:
            end = min(begin + count, self._tokens[shard].size)
            yield shard, begin, end
            count -= end - begin
            shard, begin = shard + 1, 0

    def _outside_vocabulary(self, address_N2: NDArray[np.int64]) -> DataError:
        """The message for the first token id that the model has no embedding for."""
        for row_shard, row_begin in address_N2.tolist():
            for shard, begin, end in self._pieces(row_shard, row_begin, self.row_length + 1):
                if self._is_outside_vocabulary(self._tokens[shard][begin:end]):
                    return self._outside_vocabulary_at(shard, begin, end)
        raise AssertionError("no token id is outside the vocabulary")

    def _outside_vocabulary_at(self, shard: int, begin: int, end: int) -> DataError:
        tokens = self._tokens[shard][begin:end].astype(np.int64)
        wrong = np.flatnonzero((tokens < 0) | (tokens >= self.vocab_size))
        return DataError(
            f"{self._shards[shard].prefix}.bin: token id {tokens[wrong[0]]:,} at position {begin + wrong[0]:,}, but "
            f"model.vocab_size is {self.vocab_size:,}; raise model.vocab_size to the tokenizer's size, or prepare the "
            "dataset again with the model's tokenizer"
        )


def _windows(tokens: NDArray[np.integer], length: int) -> NDArray[np.integer]:
    """All runs of `length` tokens, as a view [tokens.size - length + 1, length]."""
    return as_strided(tokens, (max(tokens.size - length + 1, 0), length), 2 * tokens.strides, writeable=False)
