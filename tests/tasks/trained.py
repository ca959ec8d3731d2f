"""Tiny models with tokenizers, in memory and as Hugging Face folders, for tests of what trained models are for."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from config.objective_schema import OBJECTIVES, ObjectiveConfig
from data.specials import BERT, T5
from data.tokenizer import Tokenizer, byte_tokenizer
from model import save_hf
from tasks.checkpoints import Trained
from tasks.export.tokenizer import save_tokenizer
from tests.model.tiny import tiny_model

SPECIALS = {"gpt": (), "bert": BERT, "t5": T5}


def tiny_trained(config: Any, tokenizer: Tokenizer | None = None, **objective: Any) -> Trained:
    """A random model of a family with the tokens of its objective (the family's first, unless named); bytes without a
    tokenizer."""
    tokenizer = (tokenizer or byte_tokenizer()).with_special_tokens(SPECIALS[config.family])
    wanted = {"name": OBJECTIVES[config.family][0], **objective}
    return Trained(
        tiny_model(config), tokenizer, config, TypeAdapter(ObjectiveConfig).validate_python(wanted), recipe=None
    )


def save_folder(trained: Trained, folder: Path) -> Path:
    """What transformers reads."""
    token_ids = save_tokenizer(folder, trained)
    save_hf(folder, trained.config, trained.model.state_dict(), token_ids=token_ids)
    return folder
