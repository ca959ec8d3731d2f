"""One unit of work: its documents cleaned, encoded and written as one shard for each split."""

from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.chunks import Advance
from data.clean import Normalisation, clean, document_hash, is_valid
from data.documents import ReadOptions, Unit, read
from data.encode import Encoder, EncoderName, make_encoder
from data.files import atomic_file, write_atomically
from data.manifest import Record, ShardEntry, Split
from data.shard import ShardWriter, token_dtype
from data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Job:
    """What every unit of a preparation has in common. Travels to the workers."""

    folder: Path
    options: ReadOptions
    normalise: Normalisation
    split_valid: float
    valid_tail: bool
    tokenizer: str
    """Content of the tokenizer.json."""
    encoder: EncoderName

    def make_encoder(self) -> tuple[Encoder, int, np.dtype]:
        """Encoder, end-of-document token and token type."""
        tokenizer = Tokenizer(self.tokenizer)
        return make_encoder(tokenizer, self.encoder), tokenizer.eod_id, token_dtype(tokenizer.vocab_size)


class UnitResult(Record):
    """What a unit wrote; its file exists only when the unit is finished."""

    shards: dict[Split, ShardEntry]
    dropped: dict[str, int]


@dataclass
class _Part:
    """The documents of a unit that belong to one split."""

    writer: ShardWriter
    hashes: array = field(default_factory=lambda: array("Q"))
    text_bytes: array = field(default_factory=lambda: array("Q"))


def result_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.json"


def load_result(folder: Path, number: int) -> UnitResult:
    return UnitResult.model_validate_json(result_path(folder, number).read_bytes())


def load_documents(folder: Path, shard_name: str) -> np.ndarray:
    """Hash (row 0) and text bytes (row 1) of each document of an unfinished dataset's shard, u64[2, documents]."""
    return np.load(folder / f"{shard_name}.npy", mmap_mode="r")


def write_unit(number: int, unit: Unit, job: Job, encoding: tuple[Encoder, int, np.dtype], advance: Advance) -> None:
    """Write the unit's shards, then its result; a unit without a result is done again from its start.

    Raises DataError of the reader, and OSError when the disk is full; temporary files are removed.
    """
    encode, eod_id, dtype = encoding
    parts: dict[Split, _Part] = {}
    dropped = Counter[str]()
    with ExitStack() as files:
        for text in _kept(unit, job, advance, dropped):
            hashed = document_hash(text.encode())
            for split, piece in _divide(text, hashed, job):
                if split not in parts:
                    parts[split] = _Part(files.enter_context(ShardWriter(job.folder / f"{split}-{number:05}", dtype)))
                ids = encode(piece)
                ids.append(eod_id)
                parts[split].writer.add(ids)
                parts[split].hashes.append(hashed)
                parts[split].text_bytes.append(len(piece.encode()))
    entries = {split: _finish_part(part) for split, part in parts.items()}
    write_atomically(result_path(job.folder, number), UnitResult(shards=entries, dropped=dropped).model_dump_json())


def _kept(unit: Unit, job: Job, advance: Advance, dropped: Counter[str]) -> Iterator[str]:
    for document in read(unit, job.options, advance):
        text = clean(document.text, job.normalise)
        if text:
            yield text
        else:
            dropped[document.problem or "empty"] += 1


def _divide(text: str, hashed: int, job: Job) -> Iterator[tuple[Split, str]]:
    """The pieces of a document by split: a property of its text alone, whatever else is prepared with it."""
    if not job.valid_tail:
        yield ("valid" if is_valid(hashed, job.split_valid) else "train"), text
        return
    cut = int(len(text) * (1 - job.split_valid))
    if text[:cut]:
        yield "train", text[:cut]
    if text[cut:]:
        yield "valid", text[cut:]


def _finish_part(part: _Part) -> ShardEntry:
    with atomic_file(part.writer.prefix.with_suffix(".npy")) as file:
        np.save(file, np.array([part.hashes, part.text_bytes], dtype="<u8"))
    return ShardEntry.of(part.writer.prefix, sum(part.text_bytes))
