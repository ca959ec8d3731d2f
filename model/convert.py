"""Our checkpoints ↔ Hugging Face folders (model.safetensors and config.json).

Their GPT-2 keeps linear weights transposed (Conv1D) and query, key and value in one matrix.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from config import CheckpointError, GPTConfig
from model.build import build
from model.hf_config import architecture, from_hf_config, to_hf_config

StateDict = dict[str, Tensor]

GPT2_NAMES = {
    "embed_tokens": "transformer.wte",
    "embed_positions": "transformer.wpe",
    "blocks.*.attention_norm": "transformer.h.*.ln_1",
    "blocks.*.attention.qkv_proj": "transformer.h.*.attn.c_attn",
    "blocks.*.attention.output_proj": "transformer.h.*.attn.c_proj",
    "blocks.*.feed_forward_norm": "transformer.h.*.ln_2",
    "blocks.*.feed_forward.up_proj": "transformer.h.*.mlp.c_fc",
    "blocks.*.feed_forward.down_proj": "transformer.h.*.mlp.c_proj",
    "final_norm": "transformer.ln_f",
    "lm_head": "lm_head",
}
LLAMA_NAMES = {
    "embed_tokens": "model.embed_tokens",
    "blocks.*.attention_norm": "model.layers.*.input_layernorm",
    "blocks.*.attention.q_proj": "model.layers.*.self_attn.q_proj",
    "blocks.*.attention.k_proj": "model.layers.*.self_attn.k_proj",
    "blocks.*.attention.v_proj": "model.layers.*.self_attn.v_proj",
    "blocks.*.attention.output_proj": "model.layers.*.self_attn.o_proj",
    "blocks.*.attention.q_norm": "model.layers.*.self_attn.q_norm",
    "blocks.*.attention.k_norm": "model.layers.*.self_attn.k_norm",
    "blocks.*.feed_forward_norm": "model.layers.*.post_attention_layernorm",
    "blocks.*.feed_forward.gate_proj": "model.layers.*.mlp.gate_proj",
    "blocks.*.feed_forward.up_proj": "model.layers.*.mlp.up_proj",
    "blocks.*.feed_forward.down_proj": "model.layers.*.mlp.down_proj",
    "final_norm": "model.norm",
    "lm_head": "lm_head",
}
NAMES = {"gpt2": GPT2_NAMES, "llama": LLAMA_NAMES, "qwen3": LLAMA_NAMES}
"""Modules under our names and theirs; `*` is the number of the block."""

CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
BUFFERS = re.compile(r"\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")
"""Tables that old files keep beside the weights."""


def load_hf(folder: str | Path) -> tuple[GPTConfig, StateDict]:
    """Config and weights, under our names and in the files' dtype, of a Hugging Face folder.

    Raises ConfigError when the architecture is not one of ours, CheckpointError when files or weights are missing.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no config.json; give a folder with config.json and *.safetensors")
    config = from_hf_config(json.loads(path.read_text()), source=str(path))
    state = from_hf_names(config, _read_tensors(folder))
    _check(config, state, folder)
    return config, state


def save_hf(folder: str | Path, config: GPTConfig, state_dict: StateDict, *, end_of_text: int | None = None) -> None:
    """Write model.safetensors and config.json such that AutoModelForCausalLM.from_pretrained(folder) loads them.

    `state_dict` is the model's, in any one floating dtype. Raises ConfigError when no architecture of theirs matches.
    """
    folder = Path(folder)
    dtype = str(state_dict["embed_tokens.weight"].dtype).removeprefix("torch.")
    hf_config = to_hf_config(config, dtype=dtype, end_of_text=end_of_text)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(to_hf_names(config, state_dict), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(hf_config, indent=2) + "\n")


def to_hf_names(config: GPTConfig, state_dict: StateDict) -> StateDict:
    """Weights under their names, contiguous, without the head when it is tied."""
    name = architecture(config)
    state = dict(state_dict)
    if config.tied_embeddings:
        state.pop("lm_head.weight", None)
    if name == "gpt2":
        state = _fuse_qkv(config, state)
    state = {_rename(key, NAMES[name]): tensor for key, tensor in state.items()}
    return {key: (tensor.T if CONV1D.search(key) else tensor).contiguous() for key, tensor in state.items()}


def from_hf_names(config: GPTConfig, tensors: StateDict) -> StateDict:
    """Weights under our names from theirs, with or without the prefix of the base model."""
    name = architecture(config)
    prefix = "transformer." if name == "gpt2" else "model."
    tensors = {key: tensor for key, tensor in tensors.items() if not BUFFERS.search(key)}
    tensors = {key: tensor.T if name == "gpt2" and CONV1D.search(key) else tensor for key, tensor in tensors.items()}
    ours = {theirs: our for our, theirs in NAMES[name].items()}
    state = {}
    for key, tensor in tensors.items():
        full = key if key.startswith((prefix, "lm_head.")) else prefix + key
        state[_rename(full, ours)] = tensor
    if name == "gpt2":
        state = _split_qkv(config, state)
    if config.tied_embeddings and "embed_tokens.weight" in state:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    return state


def _rename(key: str, names: dict[str, str]) -> str:
    """Swap the module part of a parameter's name; an unknown name stays as it is."""
    module, _, kind = key.rpartition(".")
    number = re.search(r"\.(\d+)\.", key)
    pattern = module if number is None else module.replace(number.group(), ".*.", 1)
    if pattern not in names:
        return key
    return names[pattern].replace("*", number.group(1) if number else "") + "." + kind


def _fuse_qkv(config: GPTConfig, state: StateDict) -> StateDict:
    fused = {key: tensor for key, tensor in state.items() if not re.search(r"\.[qkv]_proj\.", key)}
    for i in range(config.num_layers):
        for kind in ("weight", "bias"):
            parts = [state[f"blocks.{i}.attention.{x}_proj.{kind}"] for x in "qkv"]
            fused[f"blocks.{i}.attention.qkv_proj.{kind}"] = torch.cat(parts)
    return fused


def _split_qkv(config: GPTConfig, state: StateDict) -> StateDict:
    split = {}
    for key, tensor in state.items():
        if ".qkv_proj." not in key:
            split[key] = tensor
            continue
        for x, part in zip("qkv", tensor.split(config.hidden_size), strict=True):
            split[key.replace("qkv_proj", f"{x}_proj")] = part
    return split


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


def _check(config: GPTConfig, state: StateDict, folder: Path) -> None:
    """Every weight of the model is there in its shape, and nothing else."""
    with torch.device("meta"):
        expected = {
            name: tuple(tensor.shape) for name, tensor in build(config, kernel="reference").state_dict().items()
        }
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{folder}: weight {name} is {found.get(name, 'missing')}, the config asks for {expected.get(name, 'none')}"
            )
