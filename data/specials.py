"""Special tokens of the objectives. A corpus holds none of them, so that one corpus serves every model."""

from config.contrastive_schema import Similarity
from config.data_schema import DataSection
from config.objective_schema import SENTINELS, CausalLM, MaskedLM, ObjectiveConfig
from config.supervised_schema import SequenceToSequence, Supervised
from data.dataset import load_tokenizer
from data.tokenizer import Tokenizer

FIM = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
BERT = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
T5 = ("<pad>", *(f"<extra_id_{number}>" for number in range(SENTINELS)))


def special_names(objective: ObjectiveConfig) -> tuple[str, ...]:
    """What an objective needs beside the end-of-document token. Objectives of one family share their names, so that a
    model learns one after the other with the same tokenizer."""
    if isinstance(objective, CausalLM):
        return FIM if objective.fim_rate else ()
    if isinstance(objective, Supervised) and not isinstance(objective, SequenceToSequence):
        return ()
    return BERT if isinstance(objective, MaskedLM | Similarity) else T5


def training_tokenizer(data: DataSection, objective: ObjectiveConfig) -> Tokenizer:
    """The corpus's tokenizer with the objective's special tokens. Raises DataError if it is missing or damaged."""
    return load_tokenizer(data.datasets[0].path).with_special_tokens(special_names(objective))
