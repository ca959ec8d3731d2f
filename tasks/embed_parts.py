"""An unfinished output of embed: one file for each chunk of texts, whichever rank made it, joined at the end.

Letters: N texts, D dimensions.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import xxhash

from config import DataError
from data.documents import Document, ReadOptions, read_all
from data.files import atomic_file, write_atomically
from data.manifest import PARTIAL
from data.resume import locked
from data.sources import Source
from tasks.embed_files import write_npy, write_npz, write_parquet
from tasks.embedding import Embedder

CHUNK_TEXTS = 1024
"""Of one chunk; a kill costs each rank one chunk."""
CHUNK_CHARACTERS = 8 << 20
PLAN = "plan.json"
CUT = b"cut"
"""Key of a part's number of texts that were cut."""


@dataclass(frozen=True)
class Chunk:
    number: int
    first: int
    """Row of its first text in the output."""
    documents: list[Document]


def chunks(sources: Sequence[Source], options: ReadOptions) -> Iterator[Chunk]:
    """The texts of the sources in order, a chunk at a time: the same chunks for any number of ranks.

    Raises DataError for a text that cannot be read.
    """
    number, first, characters = 0, 0, 0
    held: list[Document] = []
    for document in _texts(sources, options):
        held.append(document)
        characters += len(document.text)
        if len(held) == CHUNK_TEXTS or characters >= CHUNK_CHARACTERS:
            yield Chunk(number, first, held)
            number, first, characters, held = number + 1, first + len(held), 0, []
    if held:
        yield Chunk(number, first, held)


def _texts(sources: Sequence[Source], options: ReadOptions) -> Iterator[Document]:
    units = [unit for source in sources for unit in source.units]
    plain = next((unit for unit in units if unit.reader not in ("jsonl", "parquet")), None)
    if options.id_field and plain:
        name = plain.paths[0] if plain.paths else plain.reader
        raise DataError(f"{name}: has no fields, so no {options.id_field!r}: leave --id-field out")
    return read_all(units, options)


def describe(embedder: Embedder, options: argparse.Namespace, sources: Sequence[Source]) -> dict[str, Any]:
    """What decides the content of the output: kept with its parts, and in it if it is a .parquet file."""
    return {
        "model": str(options.model),
        "dtype": options.dtype,
        "weights": weights_hash(embedder.model),
        "tokenizer": embedder.tokenizer.fingerprint,
        "pooling": embedder.pooling,
        "normalized": embedder.normalize,
        "dimensions": embedder.dimensions,
        "max_tokens": embedder.max_tokens,
        "text_field": options.text_field,
        "id_field": options.id_field,
        "txt_documents": options.txt_documents,
        "keep_text": options.keep_text,
        "sources": [source.entry.model_dump(mode="json") for source in sources],
    }


def weights_hash(model: torch.nn.Module) -> str:
    """XXH3 of names and values of all weights, in hex."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


class Parts:
    """Files in a hidden folder beside the output; each is there whole or not at all."""

    def __init__(self, out: Path, dimensions: int, keep_text: bool, named: bool):
        """`named`: the texts have ids of their own; else they are numbered."""
        self.out, self.folder, self.keep_text = out, out.with_name(f".{out.name}{PARTIAL}"), keep_text
        fields = [("id", pyarrow.string() if named else pyarrow.int64())]
        fields += [("text", pyarrow.large_string())] if keep_text else []
        self.schema = pyarrow.schema([*fields, ("embedding", pyarrow.list_(pyarrow.float32(), dimensions))])

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and hold it for this process; it stays only with finished parts in it. Raises DataError if another
        process holds it."""
        with locked(self.folder):
            try:
                yield
            finally:
                if not self.finished():
                    shutil.rmtree(self.folder, ignore_errors=True)

    def open(self, settings: dict[str, Any], refuse: bool) -> None:
        """Raises DataError if the parts there are of other settings or sources, or of texts that were cut, to `refuse`."""
        path, finished = self.folder / PLAN, self.finished()
        found = json.loads(path.read_text()) if finished else settings
        if refuse and (cut := self._count_cut()):
            raise DataError(
                f"{self.folder} holds an unfinished output with {cut:,} texts that were cut: give --too-long cut, another "
                "--out, or remove the folder to start over"
            )
        if found != settings:
            names = ", ".join(name for name in settings if settings[name] != found.get(name))
            raise DataError(
                f"{self.folder} holds an unfinished output with another {names}: repeat that command, give another --out, "
                "or remove the folder to start over"
            )
        write_atomically(path, json.dumps(settings, indent=1))

    def finished(self) -> dict[int, int]:
        """Texts of each finished chunk."""
        return {int(path.stem): pyarrow.parquet.read_metadata(path).num_rows for path in self._paths()}

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.parquet"))

    def _count_cut(self) -> int:
        return sum(int(pyarrow.parquet.read_schema(path).metadata[CUT]) for path in self._paths())

    def write(self, chunk: Chunk, vector_ND: np.ndarray, cut: int) -> None:
        """Write one chunk's part; `cut` of its texts were too long."""
        ids = [document.id for document in chunk.documents]
        numbers = range(chunk.first, chunk.first + len(ids))
        texts = [[document.text for document in chunk.documents]] if self.keep_text else []
        flat = pyarrow.array(vector_ND.reshape(-1), pyarrow.float32())
        vectors = pyarrow.FixedSizeListArray.from_arrays(flat, vector_ND.shape[1])
        columns = [ids if self.schema.field("id").type == pyarrow.string() else numbers, *texts, vectors]
        schema = self.schema.with_metadata({CUT: str(cut)})
        table = pyarrow.table([pyarrow.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
        with atomic_file(self.folder / f"{chunk.number:08}.parquet") as file:
            pyarrow.parquet.write_table(table, file)

    def join(self, total: int, settings: dict[str, Any]) -> int:
        """Write the output of `total` texts and remove the parts; returns how many of the texts were cut."""
        rows = sum(self.finished().values())
        if rows != total:
            raise DataError(f"the inputs had {total:,} texts at the start and {rows:,} now: they changed meanwhile")
        cut = self._count_cut()
        with atomic_file(self.out) as file:
            tables = (pyarrow.parquet.read_table(path) for path in self._paths())
            if self.out.suffix == ".parquet":
                about = {"groundwork": json.dumps({**settings, "texts": total, "cut": cut})}
                write_parquet(file, tables, self.schema.with_metadata(about))
            elif self.out.suffix == ".npy":
                write_npy(file, tables, (total, settings["dimensions"]))
            else:
                write_npz(file, tables, (total, settings["dimensions"]), json.dumps(settings))
        shutil.rmtree(self.folder)
        return cut
