"""Fill-in-the-middle: documents rearranged so that their middle comes last (Bavarian et al. 2022, arXiv:2207.14255)."""

import numpy as np
from numpy.typing import NDArray

from config.objective_schema import CausalLM
from data.batch import Batch, Collate, mask_documents
from data.draw import draw, pick
from data.pack import Rows
from data.specials import FIM
from data.tokenizer import Tokenizer

Ids = NDArray[np.int64]


def fim_rows(rows: Rows, objective: CausalLM, tokenizer: Tokenizer, key: int, document_masking: bool) -> Collate:
    """Causal rows in which some documents, as far as they lie in the row, are rearranged; a row keeps its length."""
    prefix_id, middle_id, suffix_id = tokenizer.ids_of(FIM)

    def rearrange(ids: Ids, words: list[int]) -> Ids:
        """One document, without its last tokens, whose places the three special tokens take."""
        ended = int(ids[-1] == tokenizer.eod_id)
        kept = len(ids) - ended - len(FIM)
        if kept < 1 or words[0] >= objective.fim_rate * 2**64:
            return ids
        first, second = sorted((pick(words[1], kept + 1), pick(words[2], kept + 1)))
        prefix, middle, suffix = ids[:first], ids[first:second], ids[second:kept]
        end = ids[len(ids) - ended :]
        if words[3] < objective.fim_spm_rate * 2**64:
            return np.concatenate([[prefix_id, suffix_id], suffix, [middle_id], prefix, middle, end])
        return np.concatenate([[prefix_id], prefix, [suffix_id], suffix, [middle_id], middle, end])

    def collate(address_B2: Ids, sample_B: Ids) -> Batch:
        token_BS = rows.read(address_B2)
        starts = rows.document_starts(address_B2)
        begins = np.union1d(np.arange(len(token_BS)) * token_BS.shape[1], starts + starts // rows.row_length + 1)
        row, place = np.divmod(begins, token_BS.shape[1])
        words = draw(key, sample_B[row, None], 4 * place[:, None] + np.arange(4)).tolist()
        flat, ends = token_BS.reshape(-1), [*begins[1:].tolist(), token_BS.size]
        for begin, end, drawn in zip(begins.tolist(), ends, words, strict=True):
            flat[begin:end] = rearrange(flat[begin:end], drawn)
        if document_masking:
            return mask_documents(token_BS, starts)
        return Batch(token_BS[:, :-1], token_BS[:, 1:], None, rows.row_length)

    return collate
