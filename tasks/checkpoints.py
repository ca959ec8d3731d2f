"""A trained model from a run, one of its checkpoints, or a Hugging Face folder, without DeepSpeed's engine."""

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter

from config import CheckpointError, ConfigError, RunConfig, TransformerConfig, load_recipe
from config.objective_schema import OBJECTIVES, Contrastive, ObjectiveConfig
from data.tokenizer import Tokenizer
from engine.checkpoint import find_checkpoint
from engine.objective import TEMPERATURE
from engine.state import read_weights
from model import Model, build, init_weights, load_hf, set_task_head
from model.adapters import add_adapter, merge_adapter
from tasks.sentence_layout import Pooling, read_json, read_max_tokens, read_pooling


@dataclass(frozen=True)
class Trained:
    """A model in fp32, ready to be used, and what is known about it."""

    model: Model
    tokenizer: Tokenizer
    config: TransformerConfig
    objective: ObjectiveConfig
    """What it was trained on; of a Hugging Face folder the family's first, or contrastive if it has no head."""
    recipe: RunConfig | None
    """None of a Hugging Face folder."""
    pooling: Pooling | None = None
    """The pooling that a Hugging Face folder asks for."""
    max_tokens: int | None = None
    """The longest text that a Hugging Face folder allows, if that is less than the model's positions."""


def load_model(path: Path, device: torch.device) -> Trained:
    """The model on `device` with its tokenizer: of a checkpoint, of a run's best or newest one, or of a
    Hugging Face folder.

    LoRA and AdaLoRA are merged, Houlsby's bottlenecks stay. Raises CheckpointError if there is none or it is damaged,
    ConfigError if its architecture is not one of ours.
    """
    if (path / "config.json").is_file():
        return _load_hugging_face(path, device)
    checkpoint = find_checkpoint(path)
    recipe = load_recipe(str(checkpoint / "recipe.yaml"))
    with torch.device(device):
        model = build(recipe.model)
        set_task_head(model, recipe.objective)
    weights = read_weights(checkpoint)
    weights.pop(TEMPERATURE, None)
    if recipe.model.tied_embeddings and "lm_head.weight" in model.state_dict():
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    add_adapter(model, recipe)
    model.load_state_dict(weights)
    merge_adapter(model)
    tokenizer = Tokenizer.load(checkpoint / "tokenizer.json")
    return Trained(model.eval(), tokenizer, recipe.model, recipe.objective, recipe)


def check_family(trained: Trained, task: str, families: tuple[str, ...]) -> None:
    """Raises ConfigError if the task is not for the model's family."""
    if trained.config.family not in families:
        raise ConfigError(
            f"{task} needs a model of family {' or '.join(families)}, but this one is of family {trained.config.family}: "
            "give another folder"
        )


def _load_hugging_face(folder: Path, device: torch.device) -> Trained:
    config, weights = load_hf(folder, need_heads=False)
    tokenizer = _read_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{folder}: tokenizer.json has {tokenizer.vocab_size} tokens, the model's table {config.vocab_size} rows; "
            "they belong to different models"
        )
    with torch.device(device):
        model = build(config)
    headless = not any(name.startswith("lm_head.") for name in weights)
    if headless:
        init_weights(model, config, seed=0)
    model.load_state_dict(weights, strict=not headless)
    pooling, longest = read_pooling(folder), read_max_tokens(folder)
    objective: ObjectiveConfig = TypeAdapter(ObjectiveConfig).validate_python({"name": OBJECTIVES[config.family][0]})
    if headless:
        objective = Contrastive(pooling=pooling or ("last" if config.family == "gpt" else "mean"))
    return Trained(model.eval(), tokenizer, config, objective, None, pooling, longest)


def _read_tokenizer(folder: Path) -> Tokenizer:
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder}: tokenizer.json is missing; write it with transformers: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    end = settings.get("eos_token") or settings.get("sep_token") or ""
    return Tokenizer.load(folder / "tokenizer.json", end if isinstance(end, str) else end["content"])
