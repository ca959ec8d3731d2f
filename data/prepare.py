"""From raw sources to a dataset folder: `prepare` is the whole story.

Units of work are finished one by one under OUT/.partial and survive any kill; the same command goes on from there.
"""

import errno
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from config import DataError
from data.documents import Unit
from data.encode import choose_encoder
from data.finish import clear, collect
from data.manifest import Manifest, Splits
from data.progress import Progress, in_bytes
from data.resume import Plan, PrepareOptions, already_done, locked, open_partial, settings
from data.shard import token_dtype
from data.sources import Source, plan
from data.tokenizer import TOKENIZER_NAME, Tokenizer
from data.unit import Job, result_path
from data.vocabulary import check_vocab_size, load_any, sample_texts, train_tokenizer
from data.workers import run_units

CHECK_UNITS = 16
CHECK_BYTES = 1 << 20


def prepare(options: PrepareOptions, say: Callable[[str], None] = print) -> Manifest:
    """Make the dataset, continue making it, or find that it is made.

    Raises DataError for every mistake of the arguments or the sources, and when the disk is full.
    """
    started = time.monotonic()
    with _system_errors_explained(options):
        sources = plan(list(options.sources), options.read)
        loaded = load_any(options.tokenizer) if options.tokenizer else None
        check_vocab_size(options.vocab_size)
        wanted = Plan(settings=settings(options, loaded), sources=tuple(source.entry for source in sources))
        with locked(options.out):
            if manifest := already_done(options, wanted):
                say(f"{options.out}: already done, from the same sources with the same settings\n{summary(manifest)}")
                return manifest
            manifest = _make(options, wanted, sources, loaded, say)
    seconds = time.monotonic() - started
    say(f"{options.out}: done in {seconds:,.1f} s\n{summary(manifest)}")
    return manifest


def _make(
    options: PrepareOptions, wanted: Plan, sources: list[Source], loaded: Tokenizer | None, say: Callable[[str], None]
) -> Manifest:
    """Do what is left to do; the manifest is the last file written."""
    _announce(sources, say)
    partial = open_partial(options, wanted)
    units = [unit for source in sources for unit in source.units]
    tokenizer = _tokenizer(partial, loaded, units, options, say)
    _write_units(partial, tokenizer, units, options, say)
    splits, dropped = collect(partial, options.out, len(units), options.keep_duplicates)
    tokenizer.save(options.out / TOKENIZER_NAME)
    manifest = _manifest(wanted, tokenizer, splits, dropped)
    manifest.save(options.out)
    clear(options.out, partial, splits)
    return manifest


def summary(manifest: Manifest) -> str:
    """The counts of a dataset in a few lines."""
    lines = [
        f"  {manifest.documents:,} documents, {in_bytes(manifest.text_bytes)} of text -> {manifest.tokens:,} tokens "
        f"({manifest.text_bytes / manifest.tokens:.2f} bytes per token, {manifest.vocab_size:,} in the vocabulary)"
    ]
    for split, entries in manifest.splits.items():
        tokens, documents = sum(e.tokens for e in entries), sum(e.documents for e in entries)
        note = "" if entries else " (nothing was held out: raise --split-valid if this dataset is to be validated on)"
        lines.append(f"  {split}: {tokens:,} tokens, {documents:,} documents, {len(entries):,} shards{note}")
    if manifest.dropped:
        lines.append("  dropped: " + ", ".join(f"{reason} {count:,}" for reason, count in manifest.dropped.items()))
    return "\n".join(lines)


def _announce(sources: list[Source], say: Callable[[str], None]) -> None:
    for source in sources:
        entry = source.entry
        say(f"{entry.name}: {entry.files:,} files, {in_bytes(entry.bytes)}, in {len(source.units):,} units of work")
        if source.skipped:
            kinds = sorted(source.skipped.items(), key=lambda item: (-item[1], item[0]))
            named = ", ".join(f"{suffix} {count:,}" for suffix, count in kinds[:8])
            say(f"  left out {sum(source.skipped.values()):,} files that are no text ({named})")


def _tokenizer(
    folder: Path, loaded: Tokenizer | None, units: list[Unit], options: PrepareOptions, say: Callable[[str], None]
) -> Tokenizer:
    """The tokenizer of a continued preparation, the loaded one, or a newly trained one."""
    path = folder / TOKENIZER_NAME
    if path.is_file():
        return Tokenizer.load(path)
    tokenizer = loaded
    if tokenizer is None:
        started, sample_bytes = time.monotonic(), options.sample_mb << 20
        say(f"tokenizer: training {options.vocab_size:,} tokens on up to {options.sample_mb} MiB of the sources")
        texts = sample_texts(units, options.read, options.normalise, sample_bytes)
        tokenizer = train_tokenizer(texts, options.vocab_size)
        short = "" if tokenizer.vocab_size == options.vocab_size else "; the text has no more pairs that repeat"
        say(f"tokenizer: {tokenizer.vocab_size:,} tokens in {time.monotonic() - started:.1f} s{short}")
    tokenizer.save(path)
    return tokenizer


def _write_units(
    folder: Path, tokenizer: Tokenizer, units: list[Unit], options: PrepareOptions, say: Callable[[str], None]
) -> None:
    todo = {number: unit for number, unit in enumerate(units) if not result_path(folder, number).is_file()}
    if len(todo) < len(units):
        say(f"continuing: {len(units) - len(todo):,} of {len(units):,} units of work are done")
    if not todo:
        return
    some = units[:: -(-len(units) // CHECK_UNITS)]
    encoder = choose_encoder(tokenizer, sample_texts(some, options.read, options.normalise, CHECK_BYTES))
    say(f"encoder: {encoder}")
    held_out = options.split_valid, options.valid_tail
    job = Job(folder, options.read, options.normalise, *held_out, tokenizer.spec, encoder.value)
    total = sum(unit.size for unit in units) if all(unit.size for unit in units) else 0
    done = sum(unit.size for unit in units) - sum(unit.size for unit in todo.values())
    started = time.monotonic()
    with Progress("prepare", total, done) as progress:
        run_units(todo, job, options.workers, lambda more: progress.show(done + more))
    seconds, read_bytes = time.monotonic() - started, progress.done - done
    say(f"encoded {in_bytes(read_bytes)} in {seconds:,.1f} s, {in_bytes(read_bytes / seconds)}/s")


def _manifest(wanted: Plan, tokenizer: Tokenizer, splits: Splits, dropped: dict[str, int]) -> Manifest:
    entries = [entry for split in splits.values() for entry in split]
    return Manifest(
        tokens=sum(entry.tokens for entry in entries),
        documents=sum(entry.documents for entry in entries),
        text_bytes=sum(entry.text_bytes for entry in entries),
        vocab_size=tokenizer.vocab_size,
        dtype=token_dtype(tokenizer.vocab_size).name,
        eod_id=tokenizer.eod_id,
        tokenizer_fingerprint=tokenizer.fingerprint,
        sources=wanted.sources,
        settings=wanted.settings,
        dropped=dropped,
        splits=splits,
    )


@contextmanager
def _system_errors_explained(options: PrepareOptions) -> Iterator[None]:
    """Turn what the operating system refuses into a DataError; finished units stay."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            path = Path(error.filename or options.out)
            ours = error.filename and (path.is_relative_to(options.out) or options.out.is_relative_to(path))
            where = (
                f"--out {options.out}: cannot be written, choose another folder"
                if ours
                else error.filename or "a source"
            )
            raise DataError(f"{where}: {error.strerror or error}") from error
        free = shutil.disk_usage(options.out).free
        written = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
        raise DataError(
            f"{options.out}: the disk is full ({in_bytes(free)} free, {in_bytes(written)} written so far; a dataset "
            "takes about half the bytes of its text); make room and run the same command again, it goes on from here"
        ) from error
