"""Passages: parts of single documents, for objectives whose rows are not packed."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.draw import pick
from data.pack import Rows

Ids = NDArray[np.int64]


class Passage(NamedTuple):
    ids: Ids
    """At most as many as asked for, without the end-of-document token; none if the document is empty."""
    shard: int
    number: int
    """The document's, in its shard."""


def passage_at(rows: Rows, address: tuple[int, int], words: list[int], eod_id: int) -> Passage:
    """Up to a row's tokens of the document that a token drawn from the row belongs to, around that token.

    The token is drawn, so that every document has its share of the samples, in proportion to its length. Two words are
    used.
    """
    shard, begin = address
    position = begin + pick(words[0], rows.row_length)
    shard, number, place = rows.document_at(shard, position)
    first, last = text_bounds(rows, shard, number, eod_id)
    begin = max(first, min(place - pick(words[1], rows.row_length), last - rows.row_length))
    return Passage(rows.read_part(shard, begin, min(begin + rows.row_length, last)), shard, number)


def other_passage(rows: Rows, shard: int, number: int, length: int, words: list[int], eod_id: int) -> Passage:
    """`length` tokens, or all there are, from a random place of a random other document of the same dataset. Two words
    are used."""
    documents = rows.documents_beside(shard)
    own = rows.document_number(shard, number) - documents.start
    chosen = documents[(own + 1 + pick(words[0], len(documents) - 1)) % len(documents)]
    shard, number = rows.document_numbered(chosen)
    first, last = text_bounds(rows, shard, number, eod_id)
    begin = first + pick(words[1], max(last - first - length, 0) + 1)
    return Passage(rows.read_part(shard, begin, min(begin + length, last)), shard, number)


def text_bounds(rows: Rows, shard: int, number: int, eod_id: int) -> tuple[int, int]:
    """A document's tokens in its shard, without the end-of-document token."""
    first, last = rows.document_bounds(shard, number)
    ended = last > first and rows.read_part(shard, last - 1, last)[0] == eod_id
    return first, last - int(ended)


def padded(rows: list[Ids], length: int, pad_id: int) -> tuple[Ids, Ids]:
    """Rows of one length [B, T], and their tokens before the padding [B]."""
    token_BT = np.full((len(rows), length), pad_id, np.int64)
    for token_T, ids in zip(token_BT, rows, strict=True):
        token_T[: len(ids)] = ids
    return token_BT, np.array([len(ids) for ids in rows], np.int64)
