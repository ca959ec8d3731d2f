"""Our checkpoints ↔ Hugging Face folders (model.safetensors and config.json). What differs by architecture is in hf/."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from config import CheckpointError, TransformerConfig
from model.build import build
from model.hf import architecture, from_hf_config, to_hf_config

StateDict = dict[str, Tensor]
HEAD = "lm_head."
BLOCK = re.compile(r"\.(\d+)\.")
"""Number of the block in a parameter's name."""
TENSORFLOW_NORM = re.compile(r"(?<=LayerNorm\.)(gamma|beta)$")
"""Weight and bias of norms in files that were converted from TensorFlow, such as the first BERTs."""


def load_hf(folder: str | Path, *, need_heads: bool = True) -> tuple[TransformerConfig, StateDict]:
    """Config and weights, under our names and in the files' dtype, of a Hugging Face folder.

    Without `need_heads` other heads than ours are passed over, and the weights have ours (`lm_head`) only if it is whole.
    Raises ConfigError when the architecture is not one of ours, CheckpointError when files or weights are missing.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no config.json; give a folder with config.json and *.safetensors")
    config = from_hf_config(json.loads(path.read_text()), source=str(path))
    tensors = _read_tensors(folder)
    state, expected = from_hf_names(config, tensors), _shapes(config)
    if not need_heads:
        prefix = architecture(config).prefix
        prefixed = any(prefix and key.startswith(prefix) for key in tensors)
        others = {name for name in state.keys() - expected.keys() if prefixed and not name.startswith(prefix)}
        state = {name: tensor for name, tensor in state.items() if name not in others}
        if not {name for name in expected if name.startswith(HEAD)} <= state.keys():
            expected = {name: shape for name, shape in expected.items() if not name.startswith(HEAD)}
        state = {name: tensor for name, tensor in state.items() if name in expected or not name.startswith(HEAD)}
    _check(expected, state, folder)
    return config, state


def save_hf(
    folder: str | Path,
    config: TransformerConfig,
    state_dict: StateDict,
    *,
    token_ids: dict[str, int] | None = None,
    heads: bool = True,
) -> None:
    """Write model.safetensors and config.json such that their `from_pretrained(folder)` loads them.

    `state_dict` is the model's, in any one floating dtype; `token_ids` are settings such as eos_token_id. Without
    `heads` it is their base model, as embedding models are published.
    Raises ConfigError when no architecture of theirs matches.
    """
    folder = Path(folder)
    dtype = str(next(iter(state_dict.values())).dtype).removeprefix("torch.")
    hf_config = to_hf_config(config, dtype=dtype, token_ids=token_ids)
    weights, prefix = to_hf_names(config, state_dict), architecture(config).prefix
    if not heads:
        weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
        hf_config["architectures"] = [architecture(config).base_class]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(hf_config, indent=2) + "\n")


def to_hf_names(config: TransformerConfig, state_dict: StateDict) -> StateDict:
    """Weights under their names, contiguous, without the head's when it is tied."""
    theirs = architecture(config)
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


def from_hf_names(config: TransformerConfig, tensors: StateDict) -> StateDict:
    """Weights under our names from theirs, with or without the prefix of the base model; unknown ones keep their name."""
    theirs = architecture(config)
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
    if config.tied_embeddings and "embed_tokens.weight" in state:
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


def _read_tensors(folder: Path) -> StateDict:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    tensors: StateDict = {}
    for file in files:
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder}: {file} is missing; only safetensors files are read")
        tensors.update(load_file(folder / file))
    return tensors


def _shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build(config, kernel="reference").state_dict().items()}


def _check(expected: dict[str, tuple[int, ...]], state: StateDict, folder: Path) -> None:
    """Every weight of the model is there in its shape, and nothing else."""
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{folder}: weight {name} is {found.get(name, 'missing')}, the config asks for {expected.get(name, 'none')}"
            )
