"""A trained model from a run's folder or one of its checkpoints, without DeepSpeed's engine."""

from pathlib import Path

import torch

from config import CheckpointError, RunConfig, load_recipe
from data.tokenizer import Tokenizer
from engine.checkpoint import committed, damage
from engine.objective import TEMPERATURE
from engine.state import read_weights
from model import Model, build


def find_checkpoint(path: Path) -> Path:
    """`path` itself if it is a checkpoint, else the newest intact one of the run in that folder.

    Raises CheckpointError if there is none, or if the checkpoint named is damaged.
    """
    if (path / "manifest.json").is_file():
        if problem := damage(path):
            raise CheckpointError(f"{path} is damaged: {problem}")
        return path
    for name in reversed(committed(path / "checkpoints")):
        if not damage(path / "checkpoints" / name):
            return path / "checkpoints" / name
    raise CheckpointError(f"{path}: no intact checkpoint here; give a run's folder or one of its checkpoints")


def load_model(path: Path, device: torch.device) -> tuple[Model, Tokenizer, RunConfig]:
    """The model in fp32 on `device`, its tokenizer and its recipe."""
    checkpoint = find_checkpoint(path)
    config = load_recipe(str(checkpoint / "recipe.yaml"))
    with torch.device(device):
        model = build(config.model)
    weights = read_weights(checkpoint)
    weights.pop(TEMPERATURE, None)
    if config.model.tied_embeddings:
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    model.load_state_dict(weights)
    return model.eval(), Tokenizer.load(checkpoint / "tokenizer.json"), config
