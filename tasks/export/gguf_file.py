"""A decoder as one GGUF file, which llama.cpp and what is built on it read.

Layout of files: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config import ConfigError, GPTConfig
from data.encode import GPT2_SPLIT, split_regex
from data.tokenizer import Tokenizer
from data.vocabulary import SPLIT
from model import TaskHead
from model.hf import architecture
from tasks.checkpoints import Trained
from tasks.export.check import require

FILE = "model.gguf"
NAMES = {
    "embed_tokens": "token_embd",
    "embed_positions": "position_embd",
    "blocks.*.attention_norm": "blk.*.attn_norm",
    "blocks.*.attention.q_proj": "blk.*.attn_q",
    "blocks.*.attention.k_proj": "blk.*.attn_k",
    "blocks.*.attention.v_proj": "blk.*.attn_v",
    "blocks.*.attention.q_norm": "blk.*.attn_q_norm",
    "blocks.*.attention.k_norm": "blk.*.attn_k_norm",
    "blocks.*.attention.output_proj": "blk.*.attn_output",
    "blocks.*.feed_forward_norm": "blk.*.ffn_norm",
    "blocks.*.feed_forward.gate_proj": "blk.*.ffn_gate",
    "blocks.*.feed_forward.up_proj": "blk.*.ffn_up",
    "blocks.*.feed_forward.down_proj": "blk.*.ffn_down",
    "final_norm": "output_norm",
    "lm_head": "output",
}
"""Our modules and their tensors; `*` is the number of the block."""
ARCHITECTURES = {"gpt2": "gpt2", "llama": "llama", "qwen3": "qwen3"}
"""Hugging Face's model_type, and theirs."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of tokens."""
SPLITS = {(SPLIT, False): "smaug-bpe", (SPLIT, True): "llama-bpe", (GPT2_SPLIT, False): "gpt-2"}
"""Names under which llama.cpp knows a rule that splits text, and whether a word of the vocabulary is left whole."""


def check_decoder(trained: Trained) -> None:
    """Raises ConfigError for what llama.cpp would compute or tokenise differently, or if a package is missing."""
    config = trained.config
    if not isinstance(config, GPTConfig):
        raise ConfigError(
            f"--gguf is for decoders (family gpt), this model is of family {config.family}: leave it out"
            + ("; --onnx is for encoders" if config.family == "bert" else "")
        )
    if isinstance(trained.model.lm_head, TaskHead):
        raise ConfigError(
            f"--gguf is for decoders that write text, this one was fine-tuned for {trained.objective.name}: leave it out"
        )
    theirs = architecture(config).model_type
    if theirs not in ARCHITECTURES:
        raise ConfigError(
            f"--gguf: model.sliding_window {config.sliding_window} has no equivalent in llama.cpp's llama: leave --gguf out"
        )
    if theirs == "gpt2" and config.activation != "gelu_tanh":
        raise ConfigError(
            f"--gguf: llama.cpp's gpt2 computes activation gelu_tanh, not {config.activation}: leave --gguf out"
        )
    pre_tokenizer(trained.tokenizer)
    for name in ("gguf", "xllamacpp"):
        require(name, "--gguf writes a file and runs it in llama.cpp")


def pre_tokenizer(tokenizer: Tokenizer) -> str:
    """llama.cpp's name for how a tokenizer splits text. Raises ConfigError if it has none."""
    spec = json.loads(tokenizer.spec)
    model = spec["model"]
    found = (split_regex(spec["pre_tokenizer"]), bool(model.get("ignore_merges")))
    if model["type"] != "BPE" or not model["merges"] or spec["normalizer"] or found not in SPLITS:
        raise ConfigError(
            "--gguf: llama.cpp has no equivalent of this tokenizer; it reads byte-level BPEs without normalisation that "
            "split text as `data prepare` or GPT-2 do. Leave --gguf out"
        )
    return SPLITS[found]


def write_gguf(folder: Path, trained: Trained, dtype: str) -> Path:
    """Write the file: matrices in `dtype` (float32 or bfloat16), vectors and positions in fp32; with the chat template of a
    model that has one."""
    gguf = require("gguf", "--gguf writes a file")
    config, path = trained.config, folder / FILE
    assert isinstance(config, GPTConfig)
    name = ARCHITECTURES[architecture(config).model_type]
    writer = gguf.GGUFWriter(path, name)
    bf16 = dtype == "bfloat16"
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if bf16 else gguf.LlamaFileType.ALL_F32)
    _add_settings(writer, config)
    _add_tokenizer(writer, trained.tokenizer, config.vocab_size)
    if trained.chat_template:
        writer.add_chat_template(trained.chat_template)
    for tensor_name, tensor in gguf_tensors(config, trained.model.state_dict()).items():
        if bf16 and tensor.ndim == 2 and not tensor_name.startswith("position_embd"):
            raw = tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
            writer.add_tensor(tensor_name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(tensor_name, tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors(config: GPTConfig, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under their names, [out, in]."""
    theirs = architecture(config).model_type
    tensors = {}
    for key, tensor in state_dict.items():
        if config.tied_embeddings and key == "lm_head.weight":
            continue
        module, _, kind = key.rpartition(".")
        number = re.search(r"\.(\d+)\.", module)
        name = NAMES[re.sub(r"\.\d+\.", ".*.", module)]
        if theirs == "llama" and module.endswith(("q_proj", "k_proj")):
            tensor = interleaved(tensor, config.head_width)
        tensors[f"{name.replace('*', number[1]) if number else name}.{kind}"] = tensor
    if theirs == "gpt2":
        for block in range(config.num_layers):
            for kind in ("weight", "bias"):
                parts = [tensors.pop(f"blk.{block}.attn_{part}.{kind}") for part in "qkv"]
                tensors[f"blk.{block}.attn_qkv.{kind}"] = torch.cat(parts)
    return tensors


def interleaved(tensor: Tensor, head_width: int) -> Tensor:
    """Rows of a query or key projection in the order in which llama.cpp's llama rotates neighbours: the two halves of
    each head alternate."""
    return tensor.unflatten(0, (-1, 2, head_width // 2)).transpose(1, 2).flatten(0, 2)


def _add_settings(writer: Any, config: GPTConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.ffn_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    if config.norm == "layernorm":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.norm_eps)
    if config.position == "rotary":
        writer.add_key_length(config.head_width)
        writer.add_value_length(config.head_width)
        writer.add_rope_dimension_count(config.head_width)
        writer.add_rope_freq_base(config.rope_theta)


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, rows: int) -> None:
    """The vocabulary with a name for each row of the embedding, and the merges."""
    spec = json.loads(tokenizer.spec)
    names, kinds = [f"[unused{number}]" for number in range(rows)], [UNUSED] * rows
    for token, number in spec["model"]["vocab"].items():
        names[number], kinds[number] = token, NORMAL
    for added in spec["added_tokens"]:
        names[added["id"]], kinds[added["id"]] = added["content"], CONTROL if added["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(tokenizer))
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.eod_id)
    writer.add_eos_token_id(tokenizer.eod_id)
    writer.add_pad_token_id(tokenizer.eod_id)
    writer.add_add_bos_token(False)
