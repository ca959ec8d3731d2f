"""From addresses of rows to the batch that an objective learns from."""

from config.data_schema import DataSection
from config.objective_schema import CausalLM, Contrastive, MaskedLM, ObjectiveConfig, SpanCorruption, row_shape
from data.batch import Collate, causal_rows
from data.crops import crop_rows
from data.fim import fim_rows
from data.masking import Masking, masked_rows
from data.order import derive_key
from data.pack import Rows
from data.pairs import pair_rows
from data.seq2seq import prefix_rows, span_rows
from data.specials import training_tokenizer


def make_collate(rows: Rows, data: DataSection, objective: ObjectiveConfig, seed: int) -> Collate:
    """How the objective reads rows of `row_shape(...).text` tokens.

    Whatever it draws at random is a function of (seed, objective, global sample, place in the sample). Raises DataError
    if the dataset's tokenizer is missing or the data cannot serve the objective.
    """
    if isinstance(objective, CausalLM) and not objective.fim_rate:
        return causal_rows(rows, data.document_masking)
    shape = row_shape(objective, data.row_length)
    tokenizer = training_tokenizer(data, objective)
    key, mask_key = (derive_key(seed, objective.name, number) for number in range(2))
    if isinstance(objective, CausalLM):
        return fim_rows(rows, objective, tokenizer, key, data.document_masking)
    if isinstance(objective, MaskedLM):
        masking = Masking.of(objective, mask_key, tokenizer, rows.vocab_size)
        if objective.pairs == "none":
            return masked_rows(rows, masking, tokenizer, data.document_masking)
        return pair_rows(rows, objective, masking, tokenizer, key, shape.length)
    if isinstance(objective, Contrastive):
        return crop_rows(rows, objective, tokenizer, key, shape.length)
    if isinstance(objective, SpanCorruption):
        return span_rows(rows, shape, tokenizer, key)
    return prefix_rows(rows, tokenizer, key)
