"""Models with the head of a task, made such that transformers' classes compute the same."""

from dataclasses import replace

import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import nn

from config import GPTConfig
from config.objective_schema import OBJECTIVES, ObjectiveConfig
from config.supervised_schema import HEADED
from data.specials import BERT
from model import TaskHead
from model.hf import architecture
from tasks.checkpoints import Trained


def fit_head(trained: Trained) -> Trained:
    """The same model with a head that a plain linear layer is, and with the padding that its class looks for.

    Raises ConfigError if no class of transformers computes the same.
    """
    architecture(trained.config, trained.objective)
    head = trained.model.lm_head
    if not isinstance(head, TaskHead):
        return trained
    head.absorb_scale()
    trained = replace(trained, objective=head.objective)
    return _with_padding(trained) if trained.config.family == "gpt" else trained


def without_head(trained: Trained) -> Trained:
    """The model as one that learned nothing but to read, if it has the head of a task."""
    if not isinstance(trained.objective, HEADED):
        return trained
    first = OBJECTIVES[trained.config.family][0]
    objective: ObjectiveConfig = TypeAdapter(ObjectiveConfig).validate_python({"name": first})
    return replace(trained, objective=objective)


def _with_padding(trained: Trained) -> Trained:
    """A decoder with a token for padding that ends no text: its class takes the last token that is not padding for the
    end of the text. Its table gets a row for it if there is none to spare."""
    tokenizer, config = trained.tokenizer.with_special_tokens(BERT[:1]), trained.config
    assert isinstance(config, GPTConfig)
    missing = tokenizer.vocab_size - config.vocab_size
    if missing > 0:
        config = config.model_copy(update={"vocab_size": tokenizer.vocab_size})
        rows_VD = F.pad(trained.model.embed_tokens.weight.detach(), (0, 0, 0, missing))
        trained.model.embed_tokens = nn.Embedding.from_pretrained(rows_VD)
        trained.model.config = config
    return replace(trained, tokenizer=tokenizer, config=config)
