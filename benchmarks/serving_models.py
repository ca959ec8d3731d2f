"""Models of random weights with a trained tokenizer, as the folders that servers read; and texts of mixed lengths."""

import random
from pathlib import Path
from typing import Any

import torch

import model
from config import BertConfig, GPTConfig, TransformerConfig
from config.objective_schema import CausalLM, MaskedLM
from data.specials import BERT
from data.stdlib import docstrings, topics
from data.vocabulary import train_tokenizer
from tasks.checkpoints import Trained
from tasks.embedding import Embedder
from tasks.export.sentence import write_sentence_layout
from tasks.export.tokenizer import save_tokenizer

VOCABULARY = 8192
ENCODERS: dict[str, dict[str, Any]] = {
    "tiny": dict(num_layers=2, hidden_size=128, num_heads=2),
    "small": dict(num_layers=6, hidden_size=384, num_heads=12),
}
"""`small` has MiniLM-L6's shape, but this vocabulary."""
DECODER: dict[str, Any] = dict(num_layers=6, hidden_size=256, num_heads=4, num_kv_heads=4, max_positions=512)


def mixed_texts(count: int) -> list[str]:
    """Paragraphs of the standard library's documentation in an order of their own, 20 to 1,500 characters each."""
    paragraphs = [part for text in (*topics(), *docstrings()) for part in text.split("\n\n")]
    kept = sorted({part.strip() for part in paragraphs if 20 <= len(part.strip()) <= 1500})
    random.Random(0).shuffle(kept)
    return kept[:count]


def save_models(folder: Path, names: list[str]) -> None:
    """A folder for each name of `ENCODERS` and for "decoder", those of encoders in sentence-transformers' layout."""
    tokenizer = train_tokenizer(mixed_texts(20_000), VOCABULARY)
    for name in names:
        encoder = name in ENCODERS
        own = tokenizer.with_special_tokens(BERT) if encoder else tokenizer
        config: TransformerConfig = (
            BertConfig(preset="bert", pooler=False, dropout=0.0, vocab_size=own.vocab_size, **ENCODERS[name])
            if encoder
            else GPTConfig(preset="llama", vocab_size=own.vocab_size, **DECODER)
        )
        built = model.build(config)
        model.init_weights(built, config, seed=0)
        with torch.no_grad():
            (built.embed_tokens if encoder else built.lm_head).weight.mul_(8)  # as sure of itself as a trained model
        trained = Trained(built.eval(), own, config, MaskedLM() if encoder else CausalLM(), None)
        token_ids = save_tokenizer(folder / name, trained)
        model.save_hf(folder / name, config, built.state_dict(), token_ids=token_ids, heads=not encoder)
        if encoder:
            write_sentence_layout(folder / name, Embedder(trained, "mean"))
