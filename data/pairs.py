"""Pairs of texts: does the second follow the first (BERT), are they in order (ALBERT)?"""

import numpy as np
from numpy.typing import NDArray

from config import DataError
from config.objective_schema import MaskedLM
from data.batch import IGNORE, Batch, Collate
from data.draw import draw, pick
from data.masking import Masking
from data.pack import Rows
from data.passages import other_passage, padded, passage_at
from data.specials import BERT
from data.tokenizer import Tokenizer

Ids = NDArray[np.int64]
IN_ORDER, NOT_IN_ORDER = 0, 1
HALF = 2**63
WORDS = 6


def pair_rows(
    rows: Rows, objective: MaskedLM, masking: Masking, tokenizer: Tokenizer, key: int, row_length: int
) -> Collate:
    """Rows [CLS] A [SEP] B [SEP] and padding, with hidden tokens: A and B are a passage of one document cut at random.

    Label 1 (half of the rows): under nsp B comes from a random other document of the dataset, under sop A and B are
    swapped. A passage of fewer than two tokens has no label. Raises DataError if a dataset has only one document.
    """
    pad_id, cls_id, sep_id, _ = tokenizer.ids_of(BERT)
    if objective.pairs == "nsp":
        for name, documents in zip(rows.names, rows.documents_K, strict=True):
            if documents < 2:
                raise DataError(
                    f"{name}: has one document, and objective.pairs nsp takes the second text of a pair from another one; "
                    "prepare more documents, or set objective.pairs to sop or none"
                )

    def make_pair(address: tuple[int, int], words: list[int]) -> tuple[Ids, Ids, int]:
        ids, shard, number = passage_at(rows, address, words[0:2], tokenizer.eod_id)
        if len(ids) < 2:
            return ids, ids[:0], IGNORE
        cut = 1 + pick(words[2], len(ids) - 1)
        first, second = ids[:cut], ids[cut:]
        if words[3] >= HALF:
            return first, second, IN_ORDER
        if objective.pairs == "sop":
            return second, first, NOT_IN_ORDER
        other = other_passage(rows, shard, number, len(second), words[4:6], tokenizer.eod_id)
        return first, other.ids, NOT_IN_ORDER

    def collate(address_B2: Ids, sample_B: Ids) -> Batch:
        words_B = draw(key, sample_B[:, None], np.arange(WORDS)).tolist()
        pairs = [make_pair(address, words) for address, words in zip(address_B2.tolist(), words_B, strict=True)]
        texts = [np.concatenate([[cls_id], first, [sep_id], second, [sep_id]]) for first, second, _ in pairs]
        token_BT, lengths_B = padded(texts, row_length, pad_id)
        place_T, first_B = np.arange(row_length), np.array([len(first) for first, _, _ in pairs])
        token_types_BT = (place_T >= first_B[:, None] + 2) & (place_T < lengths_B[:, None])
        inputs_BT, labels_BT = masking(token_BT, sample_B)
        return Batch(
            inputs_BT,
            labels_BT,
            lengths_B=lengths_B,
            token_types_BT=token_types_BT.astype(np.int64),
            pair_labels_B=np.array([label for _, _, label in pairs], np.int64),
            parts=("mlm", "pairs"),
        )

    return collate
