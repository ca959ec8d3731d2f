"""Floor 1: from raw text to batches of token ids. Knows nothing of models, imports no torch."""

from data.dataset import Dataset, load_tokenizer, open_dataset
from data.manifest import Manifest
from data.shard import Shard, ShardWriter
from data.tokenizer import Tokenizer, byte_tokenizer

__all__ = [
    "Dataset",
    "Manifest",
    "Shard",
    "ShardWriter",
    "Tokenizer",
    "byte_tokenizer",
    "load_tokenizer",
    "open_dataset",
]
