"""Files of vectors, written from one table of a few rows after the other."""

import zipfile
from collections.abc import Iterator
from typing import IO

import numpy as np
import pyarrow
import pyarrow.parquet

Tables = Iterator[pyarrow.Table]
"""Columns id, perhaps text, and embedding (fixed_size_list<float32>)."""


def write_parquet(file: IO[bytes], tables: Tables, schema: pyarrow.Schema) -> None:
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(schema.metadata))


def write_npy(file: IO[bytes], tables: Tables, shape: tuple[int, int]) -> None:
    """A float32 array, as np.load(…, mmap_mode="r") reads it."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    for table in tables:
        file.write(_vectors(table))


def write_npz(file: IO[bytes], tables: Tables, shape: tuple[int, int], about: str) -> None:
    """Arrays `embeddings`, `ids` (texts or whole numbers) and `about` (one JSON text); np.load needs no pickle."""
    ids: list[np.ndarray] = []

    def keep_ids() -> Tables:
        for table in tables:
            column = table["id"]
            ids.append(np.array(column.to_pylist()) if pyarrow.types.is_string(column.type) else column.to_numpy())
            yield table

    with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        with archive.open("embeddings.npy", "w", force_zip64=True) as member:
            write_npy(member, keep_ids(), shape)
        for name, array in (("ids", np.concatenate(ids)), ("about", np.array(about))):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _vectors(table: pyarrow.Table) -> bytes:
    return table["embedding"].combine_chunks().flatten().to_numpy().astype("<f4", copy=False).tobytes()
