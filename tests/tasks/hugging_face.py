"""Tiny Hugging Face folders as a hub has them, with random weights."""

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers.processors import TemplateProcessing

from data.tokenizer import byte_tokenizer

SIZES = dict(vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
BERT = transformers.BertConfig(**SIZES, max_position_embeddings=64, initializer_range=0.2)
MODERNBERT = transformers.ModernBertConfig(
    **SIZES, max_position_embeddings=64, initializer_range=0.2, local_attention=8, global_attn_every_n_layers=2,
    pad_token_id=257, bos_token_id=258, eos_token_id=259, cls_token_id=258, sep_token_id=259,
)  # fmt: skip
LLAMA = transformers.LlamaConfig(
    **SIZES, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, tie_word_embeddings=False
)
GPT2 = transformers.GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2)
T5 = transformers.T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0)


def save(folder: Path, make: Any, config: Any, framed: bool = True) -> Any:
    """Save `make(config)` and a tokenizer of bytes and BERT's names, which stand around each text if `framed`."""
    torch.manual_seed(0)
    theirs = make(config).eval()
    theirs.save_pretrained(folder)
    model = tokenizers.Tokenizer.from_str(byte_tokenizer().spec)
    model.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[MASK]"])
    if framed:
        ids = [(name, model.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
        model.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    ).save_pretrained(folder)
    return theirs


def edit(path: Path, **changes: Any) -> None:
    """Change settings of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
