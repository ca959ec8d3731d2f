"""What an encoder reads and a decoder writes: span corruption and prefixes (Raffel et al. 2019, arXiv:1910.10683)."""

import numpy as np
from numpy.typing import NDArray

from config.objective_schema import RowShape
from data.batch import IGNORE, Batch, Collate
from data.draw import Words, below, draw
from data.pack import Rows
from data.specials import T5
from data.tokenizer import Tokenizer

Ids = NDArray[np.int64]


def span_rows(rows: Rows, shape: RowShape, tokenizer: Tokenizer, key: int) -> Collate:
    """Random spans of the text are cut out: the encoder reads the rest, with a sentinel in the place of each span, and
    the decoder writes each sentinel and its span. Both end with the end-of-document token, and no row has padding."""
    pad_id, *sentinel_ids = tokenizer.ids_of(T5)
    kept = shape.text - shape.noise
    kept_words, noise_words = np.arange(kept - 1), kept + np.arange(shape.noise - 1)

    def collate(address_B2: Ids, sample_B: Ids) -> Batch:
        text_BL = rows.read(address_B2)[:, :-1]
        kept_BP = segment(draw(key, sample_B[:, None], kept_words), shape.spans)
        noise_BP = segment(draw(key, sample_B[:, None], noise_words), shape.spans)
        # A row is kept, noise, kept, noise, ...: where each of these begins.
        length_B2P = np.stack([kept_BP, noise_BP], axis=2).reshape(len(sample_B), -1)
        begin_B2P = np.cumsum(length_B2P, axis=1) - length_B2P
        run_BL = np.zeros(text_BL.shape, np.int64)
        np.put_along_axis(run_BL, begin_B2P[:, 1:], 1, axis=1)
        np.cumsum(run_BL, axis=1, out=run_BL)
        noise_BL = run_BL % 2 == 1
        source_BS = corrupt(text_BL, noise_BL, begin_B2P[:, 1::2])
        labels_BT = corrupt(text_BL, ~noise_BL, begin_B2P[:, 0::2])
        return Batch(shifted_right(labels_BT, pad_id), labels_BT, source_BS=source_BS)

    def corrupt(text_BL: Ids, cut_BL: NDArray[np.bool_], begin_BP: Ids) -> Ids:
        """The text without its cut runs, with a sentinel in the place of each, and the end."""
        text_BL, kept_BL = text_BL.copy(), ~cut_BL
        np.put_along_axis(text_BL, begin_BP, np.array(sentinel_ids[: shape.spans]), axis=1)
        np.put_along_axis(kept_BL, begin_BP, True, axis=1)
        left_BR = text_BL[kept_BL].reshape(len(text_BL), -1)
        return np.pad(left_BR, ((0, 0), (0, 1)), constant_values=tokenizer.eod_id)

    return collate


def segment(word_BG: Words, parts: int) -> Ids:
    """Lengths [B, parts] of G + 1 items cut into non-empty parts, uniform over all ways to do so: cuts are the
    parts - 1 gaps with the smallest words."""
    rows, gaps = word_BG.shape
    bounds_BP = np.zeros((rows, parts + 1), np.int64)
    bounds_BP[:, -1] = gaps + 1
    if parts > 1:
        cuts_BP = np.argpartition(word_BG, parts - 2, axis=1)[:, : parts - 1]
        bounds_BP[:, 1:-1] = np.sort(cuts_BP, axis=1) + 1
    return np.diff(bounds_BP, axis=1)


def prefix_rows(rows: Rows, tokenizer: Tokenizer, key: int) -> Collate:
    """A row cut at a random place: the encoder reads what is before it and the decoder continues; both are padded.

    No end is added, because the text goes on: where a document ends, its own end-of-document token says so.
    """
    (pad_id,) = tokenizer.ids_of(T5[:1])

    def collate(address_B2: Ids, sample_B: Ids) -> Batch:
        text_BT = rows.read(address_B2)[:, :-1]
        length = text_BT.shape[1]
        cut_B1 = 1 + below(draw(key, sample_B[:, None], np.arange(1)), length - 1)
        place_T = np.arange(length)
        source_BS = np.where(place_T < cut_B1, text_BT, pad_id)
        continued_BT = np.take_along_axis(text_BT, np.minimum(place_T + cut_B1, length - 1), axis=1)
        labels_BT = np.where(place_T + cut_B1 < length, continued_BT, IGNORE)
        tokens_BT = shifted_right(np.where(labels_BT == IGNORE, pad_id, labels_BT), pad_id)
        return Batch(tokens_BT, labels_BT, source_BS=source_BS, source_lengths_B=cut_B1[:, 0])

    return collate


def shifted_right(labels_BT: Ids, pad_id: int) -> Ids:
    """The decoder's inputs: each place holds what was to be written before it, the first one padding."""
    return np.pad(labels_BT[:, :-1], ((0, 0), (1, 0)), constant_values=pad_id)
