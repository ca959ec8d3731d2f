"""Our checkpoints ↔ Hugging Face folders (model.safetensors and config.json). What differs by architecture is in hf/."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from config import CheckpointError, TransformerConfig
from config.objective_schema import ObjectiveConfig
from config.supervised_schema import Classification, Regression, TokenClassification
from model.build import build
from model.hf import architecture, from_hf_config, read_objective, to_hf_config
from model.task_head import set_task_head

StateDict = dict[str, Tensor]
HEAD, POOLER = "lm_head.", "lm_head.pooler."
BLOCK = re.compile(r"\.(\d+)\.")
"""Number of the block in a parameter's name."""
TENSORFLOW_NORM = re.compile(r"(?<=LayerNorm\.)(gamma|beta)$")
"""Weight and bias of norms in files that were converted from TensorFlow, such as the first BERTs."""


def load_hf(
    folder: str | Path, *, need_heads: bool = True, objective: ObjectiveConfig | None = None, pooler: bool = False
) -> tuple[TransformerConfig, StateDict]:
    """Config and weights, under our names and in the files' dtype, of a Hugging Face folder.

    The head is that of the `objective` (see `load_hf_objective`), else the language model's. Without `need_heads` others
    are passed over, and the weights have ours (`lm_head`) only if it is whole. With `pooler`, BERT's is among the weights
    wherever there is one: heads of tasks begin with it.
    Raises ConfigError when the architecture is not one of ours, CheckpointError when files or weights are missing or
    damaged.
    """
    folder = Path(folder)
    config = from_hf_config(_read_config(folder), source=str(folder / "config.json"))
    tensors = _read_tensors(folder)
    state, expected = from_hf_names(config, tensors, objective), _shapes(config, objective)
    poolers = {name: tensor for name, tensor in state.items() if pooler and name.startswith(POOLER)}
    if not need_heads:
        prefix = architecture(config).prefix
        prefixed = any(prefix and key.startswith(prefix) for key in tensors)
        others = {name for name in state.keys() - expected.keys() if prefixed and not name.startswith(prefix)}
        state = {name: tensor for name, tensor in state.items() if name not in others}
        if not {name for name in expected if name.startswith(HEAD)} <= state.keys():
            expected = {name: shape for name, shape in expected.items() if not name.startswith(HEAD)}
        state = {name: tensor for name, tensor in state.items() if name in expected or not name.startswith(HEAD)}
    _check(expected, state, folder)
    return config, {**state, **poolers}


def load_hf_objective(folder: str | Path) -> Classification | TokenClassification | Regression | None:
    """The objective of a Hugging Face folder whose class has the head of a task that we have; None for any other."""
    return read_objective(_read_config(Path(folder)))


def save_hf(
    folder: str | Path,
    config: TransformerConfig,
    state_dict: StateDict,
    *,
    token_ids: dict[str, int] | None = None,
    heads: bool = True,
    objective: ObjectiveConfig | None = None,
) -> None:
    """Write model.safetensors and config.json such that their `from_pretrained(folder)` loads them.

    `state_dict` is the model's, in any one floating dtype; `token_ids` are settings such as eos_token_id. Without
    `heads` it is their base model, as embedding models are published; else the one with the head of the `objective`.
    Raises ConfigError when no architecture of theirs matches.
    """
    folder = Path(folder)
    dtype = str(next(iter(state_dict.values())).dtype).removeprefix("torch.")
    if not heads:
        objective, state_dict = None, {key: tensor for key, tensor in state_dict.items() if not key.startswith(HEAD)}
    hf_config = to_hf_config(config, dtype=dtype, token_ids=token_ids, objective=objective)
    weights, prefix = to_hf_names(config, state_dict, objective), architecture(config).prefix
    if not heads:
        weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
        hf_config["architectures"] = [architecture(config).base_class]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(hf_config, indent=2) + "\n")


def to_hf_names(
    config: TransformerConfig, state_dict: StateDict, objective: ObjectiveConfig | None = None
) -> StateDict:
    """Weights under their names, contiguous, without the head's when it is tied."""
    theirs = architecture(config, objective)
    places = {
        ours: (name, place)
        for name, names in reversed(theirs.names.items())
        for place, ours in enumerate([names] if isinstance(names, str) else names)
    }
    parts: dict[str, dict[int, Tensor]] = {}
    for key, tensor in state_dict.items():
        if config.tied_embeddings and key == "lm_head.weight":
            continue
        found = _look_up(key, places)
        assert found, f"{theirs.class_name} has no name for {key}"
        (name, place), fill = found
        parts.setdefault(fill(name), {})[place] = tensor
    state = {
        key: found[0] if len(found) == 1 else torch.cat([found[i] for i in sorted(found)])
        for key, found in parts.items()
    }
    if theirs.transposed:
        state = {key: tensor.T if theirs.transposed.search(key) else tensor for key, tensor in state.items()}
    return {key: tensor.contiguous() for key, tensor in state.items()}


def from_hf_names(config: TransformerConfig, tensors: StateDict, objective: ObjectiveConfig | None = None) -> StateDict:
    """Weights under our names from theirs, with or without the prefix of the base model; unknown ones keep their name."""
    theirs = architecture(config, objective)
    state: StateDict = {}
    for key, tensor in tensors.items():
        if theirs.ignored and theirs.ignored.search(key):
            continue
        key = TENSORFLOW_NORM.sub(lambda kind: {"gamma": "weight", "beta": "bias"}[kind[0]], key)
        found = _look_up(key, theirs.names) or _look_up(theirs.prefix + key, theirs.names)
        if found is None:
            state[key] = tensor
            continue
        names, fill = found
        if theirs.transposed and theirs.transposed.search(key):
            tensor = tensor.T
        if isinstance(names, str):
            state[fill(names)] = tensor
            continue
        state.update(zip(map(fill, names), tensor.chunk(len(names)), strict=True))
    if config.tied_embeddings and objective is None and "embed_tokens.weight" in state:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    return state


def _look_up(key: str, table: dict[str, Any]) -> tuple[Any, Callable[[str], str]] | None:
    """A parameter's entry in a table of parameters and modules, and what completes the names in it."""
    module, _, kind = key.rpartition(".")
    number = BLOCK.search(key)
    for name, ending in ((key, ""), (module, "." + kind)):
        if name in table:
            return table[name], lambda other, ending=ending: other + ending
        starred = BLOCK.sub(".*.", name, count=1)
        if number and starred in table:
            return table[starred], lambda other, ending=ending: other.replace("*", number[1]) + ending
    return None


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no config.json; give a folder with config.json and *.safetensors")
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); copy the file again") from None


def _read_tensors(folder: Path) -> StateDict:
    index = folder / "model.safetensors.index.json"
    files = sorted(set(_read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    tensors: StateDict = {}
    for file in files:
        if not (folder / file).is_file():
            pickled = ", ".join(path.name for path in sorted(folder.glob("*.bin")))
            advice = f", and {pickled} may run any code: transformers' from_pretrained and save_pretrained rewrite it"
            raise CheckpointError(
                f"{folder}: {file} is missing; only safetensors files are read{advice if pickled else ''}"
            )
        try:
            tensors.update(load_file(folder / file))
        except SafetensorError as error:
            raise CheckpointError(f"{folder / file}: damaged ({error}); copy the file again") from None
    return tensors


def _shapes(config: TransformerConfig, objective: ObjectiveConfig | None) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = build(config, kernel="reference")
        if objective is not None:
            set_task_head(model, objective)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _check(expected: dict[str, tuple[int, ...]], state: StateDict, folder: Path) -> None:
    """Every weight of the model is there in its shape, and nothing else."""
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{folder}: weight {name} is {found.get(name, 'missing')}, the config asks for {expected.get(name, 'none')}"
            )
