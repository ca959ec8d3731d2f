"""Vectors of texts: of files and folders of jsonl, parquet or text into one .parquet, .npy or .npz file."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from config import ConfigError, DataError
from tasks.dtype import add_dtype

if TYPE_CHECKING:
    from engine.dist import World
    from tasks.embed_parts import Chunk, Parts
    from tasks.embedding import Embedder

PATIENCE_SECONDS = 24 * 3600.0
"""For the slowest rank."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=Path, help="folder of a run, of a checkpoint, or Hugging Face's")
    add("inputs", nargs="+", metavar="INPUT", help=".jsonl, .txt (also .gz, .zst) or .parquet, or a folder of them")
    add("--out", type=Path, required=True, metavar="FILE", help=".parquet, .npy or .npz; must not exist")
    add("--text-field", default="text", metavar="NAME", help="field or column with the text (default text)")
    add("--id-field", default="", metavar="NAME", help="field or column with an id (default: the texts are numbered)")
    add("--keep-text", action="store_true", help="a column of the .parquet file for the texts, too")
    add(
        "--txt-documents",
        choices=("file", "paragraph", "line"),
        default="line",
        help="what one text of a .txt file is (default line)",
    )
    add("--pooling", choices=("cls", "mean", "last"), help="default: as trained, else mean (BERT) or last (GPT)")
    add("--no-normalize", action="store_true", help="vectors as they are, not of length 1")
    add("--dimensions", type=int, metavar="N", help="keep the first N (for models trained so: Matryoshka)")
    add("--max-tokens", type=int, metavar="N", help="longest text, special tokens included (default: the model's)")
    add("--too-long", choices=("cut", "refuse"), default="cut", help="what to do with longer ones (default cut)")
    add("--batch-tokens", type=int, metavar="N", help="tokens in a batch (default 2048 on a CPU, 16384 on a GPU)")
    add_dtype(parser)


def run(options: argparse.Namespace) -> int:
    check_out(options.out, options.id_field, options.keep_text)

    from engine.dist import connected

    with connected(PATIENCE_SECONDS) as world:
        try:
            report = embed(options, world)
        except KeyboardInterrupt:
            if world.is_main:
                print("stopped; the same command continues", file=sys.stderr)
            raise
    if world.is_main:
        print(report)
    return 0


def check_out(out: Path, id_field: str, keep_text: bool) -> None:
    """Raises ConfigError if the output exists or cannot hold what was asked for."""
    if out.suffix not in (".parquet", ".npy", ".npz"):
        raise ConfigError(f"--out {out}: a file of unknown kind {out.suffix!r}; known are .parquet, .npy and .npz")
    if out.exists():
        raise ConfigError(f"--out {out} exists already: remove it, or give another name")
    if id_field and out.suffix == ".npy":
        raise ConfigError(
            f"--out {out}: a .npy file has no place for ids: give a .npz or .parquet file, or no --id-field"
        )
    if keep_text and out.suffix != ".parquet":
        raise ConfigError(f"--out {out}: only a .parquet file has a place for texts: give one, or no --keep-text")


def embed(options: argparse.Namespace, world: "World") -> str:
    """Embed this rank's share and, on rank 0, write the output; all ranks call it together. Returns a report.

    Chunks of texts that are finished already, by whatever ranks, are not embedded again.
    """
    from data.documents import ReadOptions
    from data.sources import plan
    from engine.dist import from_main, together
    from tasks.embed_parts import Parts, chunks, describe

    reading = ReadOptions(options.text_field, options.txt_documents, id_field=options.id_field)
    sources = together(lambda: plan(options.inputs, reading), world)
    embedder = together(lambda: load_embedder(options, world), world)
    settings = describe(embedder, options, sources)
    parts = Parts(options.out, embedder.dimensions, options.keep_text, bool(options.id_field))
    refuse = options.too_long == "refuse"
    with parts.held() if world.is_main else nullcontext():
        together(lambda: parts.open(settings, refuse) if world.is_main else None, world)
        # Every text is read once before the first is embedded: a bad line is worth knowing hours earlier.
        total = from_main(together(lambda: count(chunks(sources, reading)) if world.is_main else 0, world))
        done = from_main(parts.finished() if world.is_main else None)
        together(lambda: embed_share(embedder, chunks(sources, reading), parts, done, total, refuse, world), world)
        cut = from_main(together(lambda: parts.join(total, settings) if world.is_main else 0, world))
    kind = f"{embedder.pooling} pooling, {'length 1' if embedder.normalize else 'not normalised'}"
    cuts = f"; {cut:,} texts were longer than {embedder.max_tokens} tokens and cut" if cut else ""
    return f"{options.out}: {total:,} vectors of {embedder.dimensions} dimensions ({kind}){cuts}"


def load_embedder(options: argparse.Namespace, world: "World") -> "Embedder":
    import torch

    from tasks.checkpoints import load_model
    from tasks.embedding import Embedder

    return Embedder(
        load_model(options.model, world.device, getattr(torch, options.dtype)),
        options.pooling,
        False if options.no_normalize else None,
        options.dimensions,
        options.max_tokens,
        options.batch_tokens,
    )


def count(found: "Iterator[Chunk]") -> int:
    """Texts in all chunks. Raises DataError if there are none."""
    total = sum(len(chunk.documents) for chunk in found)
    if not total:
        raise DataError("there is no text in the inputs")
    return total


def embed_share(
    embedder: "Embedder",
    found: "Iterator[Chunk]",
    parts: "Parts",
    done: dict[int, int],
    total: int,
    refuse: bool,
    world: "World",
) -> None:
    """Embed every nth of the chunks that are not `done`, n being the number of ranks. `done` has the texts of each."""
    from data.progress import Progress

    rows = sum(done.values())
    with Progress("embed", total, rows, "texts") if world.is_main else nullcontext() as progress:
        todo = (chunk for chunk in found if chunk.number not in done)
        for turn, chunk in enumerate(todo):
            if turn % world.size == world.rank:
                tokens = embedder.tokenize([document.text for document in chunk.documents])
                cut = count_too_long(tokens, chunk, embedder.max_tokens, refuse)
                parts.write(chunk, embedder.encode_tokens([embedder.cut(row) for row in tokens]).numpy(), cut)
            rows += len(chunk.documents)
            if progress is not None:
                progress.show(rows)


def count_too_long(rows: list[list[int]], chunk: "Chunk", longest: int, refuse: bool) -> int:
    """How many texts have more than `longest` tokens. Raises DataError that names the first of them if they are refused."""
    found = [number for number, row in enumerate(rows) if len(row) > longest]
    if found and refuse:
        document = chunk.documents[found[0]]
        name = f"text {chunk.first + found[0]:,}" + (f" (id {document.id})" if document.id else "")
        raise DataError(
            f"{name} has {len(rows[found[0]]):,} tokens, more than {longest:,}: shorten it, raise --max-tokens as far as "
            "the model goes, or allow --too-long cut"
        )
    return len(found)
