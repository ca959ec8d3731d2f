"""Tokens hidden for a masked language model (Devlin et al. 2018, arXiv:1810.04805, section 3.1)."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from config.objective_schema import MaskedLM
from data.batch import IGNORE, Batch, Collate, sequences
from data.draw import below, chance, draw
from data.pack import Rows
from data.specials import BERT
from data.tokenizer import Tokenizer
from data.words import BEGINS_INSIDE, ENDS_INSIDE, word_table

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Masking:
    """Which tokens of a row are to be predicted, and what the model reads in their place."""

    objective: MaskedLM
    key: int
    mask_id: int
    ordinary_ids: Ids
    """What a random token is drawn from."""
    special_V: NDArray[np.bool_]
    """Ids that are never hidden."""
    word_V: NDArray[np.uint8] | None
    """Flags of `word_table`, for whole words."""

    @classmethod
    def of(cls, objective: MaskedLM, key: int, tokenizer: Tokenizer, vocab_size: int) -> "Masking":
        special_V = np.zeros(vocab_size, np.bool_)
        special_V[[*tokenizer.special_ids, *range(tokenizer.vocab_size, vocab_size)]] = True
        (mask_id,) = tokenizer.ids_of(["[MASK]"])
        word_V = word_table(tokenizer, vocab_size) if objective.whole_word else None
        return cls(objective, key, mask_id, np.flatnonzero(~special_V), special_V, word_V)

    def __call__(self, token_BT: Ids, sample_B: Ids) -> tuple[Ids, Ids]:
        """Inputs and labels. `token_BT` is overwritten and becomes the inputs."""
        row_length = token_BT.shape[1]
        word_BT = draw(self.key, sample_B[:, None], np.arange(row_length))
        chosen_BT = chance(word_BT, self.objective.mask_rate)
        if self.word_V is not None:
            chosen_BT = np.take_along_axis(chosen_BT, self._word_begin(token_BT), axis=1)
        chosen_BT &= ~self.special_V[token_BT]
        place_N = np.flatnonzero(chosen_BT)
        labels_BT = np.full_like(token_BT, IGNORE)
        labels_BT.reshape(-1)[place_N] = token_BT.reshape(-1)[place_N]
        # The high bits have decided that a token is chosen; the low ones are still free.
        share_N = (word_BT.reshape(-1)[place_N] & np.uint64(2**32 - 1)) * 2.0**-32
        masked_N = share_N < self.objective.mask_share
        random_N = ~masked_N & (share_N < self.objective.mask_share + self.objective.random_share)
        inputs = token_BT.reshape(-1)
        inputs[place_N[masked_N]] = self.mask_id
        place_R = place_N[random_N]
        row_R, column_R = np.divmod(place_R, row_length)
        word_R = draw(self.key, sample_B[row_R], row_length + column_R)
        inputs[place_R] = self.ordinary_ids[below(word_R, len(self.ordinary_ids))]
        return token_BT, labels_BT

    def _word_begin(self, token_BT: Ids) -> Ids:
        """Place in its row of the first token of each token's word."""
        assert self.word_V is not None
        flag_BT = self.word_V[token_BT]
        begins_BT = np.ones(token_BT.shape, np.bool_)
        begins_BT[:, 1:] = (flag_BT[:, 1:] & BEGINS_INSIDE == 0) | (flag_BT[:, :-1] & ENDS_INSIDE == 0)
        place_BT = np.where(begins_BT, np.arange(token_BT.shape[1]), 0)
        return np.maximum.accumulate(place_BT, axis=1)


def masked_rows(rows: Rows, masking: Masking, tokenizer: Tokenizer, document_masking: bool) -> Collate:
    """Full rows: [CLS], text, [SEP]; the end of a document inside the text is a [SEP], too."""
    cls_id, sep_id = tokenizer.ids_of(BERT[1:3])

    def collate(address_B2: Ids, sample_B: Ids) -> Batch:
        text_BL = rows.read(address_B2)[:, :-1]
        token_BT = np.empty((len(text_BL), text_BL.shape[1] + 2), np.int64)
        token_BT[:, 0], token_BT[:, -1] = cls_id, sep_id
        token_BT[:, 1:-1] = np.where(text_BL == tokenizer.eod_id, sep_id, text_BL)
        inputs_BT, labels_BT = masking(token_BT, sample_B)
        batch = Batch(inputs_BT, labels_BT, parts=("mlm",))
        if not document_masking:
            return batch
        row, place = np.divmod(rows.document_starts(address_B2) + 1, text_BL.shape[1])
        starts = row * token_BT.shape[1] + place + 1
        cu_seqlens, max_seqlen = sequences(token_BT.shape, starts[place > 0])
        return replace(batch, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen)

    return collate
