"""A trained model from a run, one of its checkpoints, or a Hugging Face folder, without DeepSpeed's engine."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import TypeAdapter

from config import CheckpointError, ConfigError, RunConfig, TransformerConfig, load_recipe
from config.objective_schema import OBJECTIVES, Contrastive, ObjectiveConfig
from config.supervised_schema import HEADED, Instruction
from data.chat import PROMPTS, TEMPLATE
from data.tokenizer import Tokenizer
from engine.checkpoint import find_checkpoint
from engine.objective import TEMPERATURE
from engine.state import read_weights
from model import Model, build, init_weights, load_hf, load_hf_objective, set_task_head
from model.adapters import add_adapter, merge_adapter
from tasks.sentence_layout import SentenceLayout, lowers_case, read_layout, read_max_tokens

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Trained:
    """A model ready to be used, and what is known about it."""

    model: Model
    tokenizer: Tokenizer
    config: TransformerConfig
    objective: ObjectiveConfig
    """What it was trained on. Of a Hugging Face folder what its head is for: a task, its `exported_recipe`'s objective, the
    family's first one, or contrastive if it has none that we know."""
    recipe: RunConfig | None
    """None of a Hugging Face folder."""
    exported_recipe: RunConfig | None = None
    """Of a Hugging Face folder that `tasks export` wrote: that of its run."""
    layout: SentenceLayout = field(default_factory=SentenceLayout)
    """What a Hugging Face folder says of its vectors."""
    max_tokens: int | None = None
    """The longest text that a Hugging Face folder allows, if that is less than the model's positions."""

    @property
    def trained_by(self) -> RunConfig | None:
        """The recipe of the run, or of the run that a Hugging Face folder was exported from."""
        return self.recipe or self.exported_recipe

    @property
    def examples_recipe(self) -> RunConfig | None:
        """The recipe that says how labelled examples are read, if the model learned from any."""
        return self.trained_by if self.trained_by and self.trained_by.data.examples else None

    @property
    def chat_template(self) -> str | None:
        """How a decoder read the conversations, or the prompts and answers, that it learned from; None if there were none."""
        if not isinstance(self.objective, Instruction):
            return None
        examples = self.examples_recipe.data.examples if self.examples_recipe else None
        return (examples.chat_template or TEMPLATE) if examples and examples.messages else PROMPTS


def load_model(path: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Trained:
    """The model on `device` with its tokenizer: of a checkpoint, of a run's best or newest one, or of a
    Hugging Face folder.

    LoRA and AdaLoRA are merged, Houlsby's bottlenecks stay. All weights become `dtype` at the end, as in training with
    `engine.precision: bf16`; positions, sums of norms, vectors and probabilities are fp32 in any.
    Raises CheckpointError if there is none or it is damaged, ConfigError if its architecture is not one of ours or the
    device has no use for `dtype`.
    """
    if dtype == torch.float16 and device.type == "cpu":
        raise ConfigError("--dtype float16 gains nothing over float32 on a CPU: use bfloat16 or float32, or a GPU")
    trained = _load_hugging_face(path, device) if (path / "config.json").is_file() else _load_run(path, device)
    trained.model.to(dtype)
    return trained


def _load_run(path: Path, device: torch.device) -> Trained:
    checkpoint = find_checkpoint(path)
    recipe = load_recipe(str(checkpoint / RECIPE))
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
    task = load_hf_objective(folder)
    config, weights = load_hf(folder, need_heads=False, objective=task)
    tokenizer = _read_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{folder}: tokenizer.json has {tokenizer.vocab_size} tokens, the model's table {config.vocab_size} rows; "
            "they belong to different models"
        )
    layout, recipe = read_layout(folder), folder / RECIPE
    exported = load_recipe(str(recipe)) if recipe.is_file() else None
    headless = not any(name.startswith("lm_head.") for name in weights)
    objective = _objective(config, None if headless else task, exported, layout, headless)
    with torch.device(device):
        model = build(config)
        set_task_head(model, objective)
    if headless:
        init_weights(model, config, seed=0)
    model.load_state_dict(weights, strict=not headless)
    if exported is not None:
        exported = exported.model_copy(update={"objective": objective})
    return Trained(model.eval(), tokenizer, config, objective, None, exported, layout, read_max_tokens(folder))


def _objective(
    config: TransformerConfig,
    task: ObjectiveConfig | None,
    exported: RunConfig | None,
    layout: SentenceLayout,
    headless: bool,
) -> ObjectiveConfig:
    """What a Hugging Face folder can be taken to have learned."""
    if headless:
        return Contrastive(pooling=layout.pooling or ("last" if config.family == "gpt" else "mean"))
    if task is not None:
        return task
    if exported is not None and not isinstance(exported.objective, HEADED):
        return exported.objective
    return TypeAdapter(ObjectiveConfig).validate_python({"name": OBJECTIVES[config.family][0]})


def _read_tokenizer(folder: Path) -> Tokenizer:
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder}: tokenizer.json is missing; write it with transformers: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    return tokenizer.lowercased() if lowers_case(folder) else tokenizer
