"""Two random crops of one document, to be told from crops of other documents (Izacard et al. 2021, arXiv:2112.09118)."""

import numpy as np
from numpy.typing import NDArray

from config.contrastive_schema import Contrastive
from data.batch import Batch, Collate
from data.draw import draw, pick
from data.pack import Rows
from data.passages import passage_at
from data.similar import similar_rows
from data.specials import BERT
from data.tokenizer import Tokenizer

Ids = NDArray[np.int64]
WORDS = 6


def crop_rows(rows: Rows, objective: Contrastive, tokenizer: Tokenizer, key: int, row_length: int) -> Collate:
    """For B samples 2B rows [CLS] crop [SEP] and padding: B anchors, then the positive of each in the same order.

    A crop's length is a uniform share of its passage from min_crop to max_crop, and its place is uniform.
    """
    pad_id, cls_id, sep_id, _ = tokenizer.ids_of(BERT)

    def crop(ids: Ids, words: list[int]) -> Ids:
        share = objective.min_crop + (objective.max_crop - objective.min_crop) * words[0] * 2.0**-64
        length = min(max(round(share * len(ids)), 1), len(ids), row_length - 2)
        begin = pick(words[1], len(ids) - length + 1)
        return np.concatenate([[cls_id], ids[begin : begin + length], [sep_id]])

    def collate(address_B2: Ids, sample_B: Ids) -> Batch:
        words_B = draw(key, sample_B[:, None], np.arange(WORDS)).tolist()
        passages = [
            passage_at(rows, address, words[0:2], tokenizer.eod_id).ids
            for address, words in zip(address_B2.tolist(), words_B, strict=True)
        ]
        anchors = [crop(ids, words[2:4]) for ids, words in zip(passages, words_B, strict=True)]
        positives = [crop(ids, words[4:6]) for ids, words in zip(passages, words_B, strict=True)]
        return similar_rows([*anchors, *positives], len(sample_B), row_length, pad_id, objective.mask_duplicates)

    return collate
