"""Prepared corpora of known documents, for the tests of objectives."""

from pathlib import Path

import numpy as np
import tokenizers

from config.data_schema import DataSection
from config.objective_schema import ObjectiveConfig
from config.schema import BatchSection
from data.manifest import Manifest, ShardEntry
from data.shard import ShardWriter, token_dtype
from data.stream import Stream, open_stream
from data.tokenizer import TOKENIZER_NAME, Tokenizer, with_end_token

WORDS = 20_000
VOCAB_SIZE = WORDS + 1 + 128
EOD = WORDS


def word_tokenizer() -> Tokenizer:
    """A vocabulary of the words w0, w1, ..., each one token."""
    model = tokenizers.models.WordLevel({f"w{number}": number for number in range(WORDS)}, unk_token="w0")
    return with_end_token(tokenizers.Tokenizer(model))


def make_corpus(folder: Path, documents: list[list[int]], tokenizer: Tokenizer | None = None, shards: int = 2) -> str:
    """A dataset of these documents, each followed by the end-of-document token, in shards; the last document again is its
    validation split."""
    tokenizer = tokenizer or word_tokenizer()
    folder.mkdir()
    dtype, entries = token_dtype(tokenizer.vocab_size), {}
    cuts = [round(n * len(documents) / shards) for n in range(shards + 1)]
    parts = {f"train-{n}": documents[cuts[n] : cuts[n + 1]] for n in range(shards)} | {"valid": documents[-40:]}
    for name, part in parts.items():
        if part:
            with ShardWriter(folder / name, dtype) as writer:
                for document in part:
                    writer.add([*document, tokenizer.eod_id])
            entries[name] = ShardEntry.of(folder / name, text_bytes=0)
    tokenizer.save(folder / TOKENIZER_NAME)
    Manifest(
        tokens=sum(map(len, documents)), documents=len(documents), text_bytes=0, vocab_size=tokenizer.vocab_size,
        dtype=dtype.name, eod_id=tokenizer.eod_id, tokenizer_fingerprint=tokenizer.fingerprint, sources=(), settings={},
        dropped={}, splits={"train": tuple(entries[n] for n in entries if n != "valid"), "valid": (entries["valid"],)},
    ).save(folder)  # fmt: skip
    return str(folder)


def numbered_documents(lengths: list[int]) -> list[list[int]]:
    """Documents whose tokens are numbered through, so that a token tells its document and its place."""
    ends = np.cumsum(lengths)
    assert ends[-1] < WORDS
    return [list(range(end - length, end)) for end, length in zip(ends.tolist(), lengths, strict=True)]


def data_section(path: str, row_length: int, **settings) -> DataSection:
    values = {"datasets": [{"path": path}], "row_length": row_length, "prefetch_steps": 0, **settings}
    return DataSection.model_validate(values)


def make_stream(
    data: DataSection, objective: ObjectiveConfig, rows: int = 32, micro: int | None = None, seed: int = 1, **options
) -> Stream:
    batch = BatchSection(global_batch_size=rows, micro_batch_size=micro or rows)
    return open_stream(data, batch, objective, seed=seed, vocab_size=VOCAB_SIZE, **options)
