"""What `python -m data inspect` shows of a dataset."""

from pathlib import Path

import numpy as np

from data.dataset import Dataset, load_tokenizer, open_dataset
from data.manifest import SPLITS, Manifest
from data.prepare import summary
from data.tokenizer import Tokenizer

BAR_WIDTH = 40
SAMPLE_CHARACTERS = 400


def report(folder: Path, documents: int = 3) -> str:
    """Counts, lengths of documents and decoded samples. Raises DataError if the dataset cannot be opened."""
    manifest = Manifest.load(folder)
    tokenizer = load_tokenizer(folder)
    datasets = [open_dataset(folder, split) for split in SPLITS if manifest.splits.get(split)]
    lengths = np.concatenate([shard.lengths for dataset in datasets for shard in dataset.shards])
    sections = [
        f"{folder}\n{summary(manifest)}",
        "sources\n"
        + "\n".join(f"  {s.name}: {s.files:,} files, {s.bytes / 1e6:,.1f} MB" for s in manifest.sources)
        + "\n  prepared with "
        + ", ".join(f"{key} {value}" for key, value in manifest.settings.items()),
        f"tokenizer\n  {tokenizer.vocab_size:,} tokens, end of document {tokenizer.eod_token!r} = {tokenizer.eod_id}, "
        f"fingerprint {tokenizer.fingerprint[:16]}\n  longest tokens: {_longest_tokens(tokenizer)}",
        "shards\n" + "\n".join(_shards(dataset) for dataset in datasets),
        f"tokens in a document\n{histogram(lengths)}",
        *_samples(datasets[0], tokenizer, documents),
    ]
    return "\n\n".join(sections)


def histogram(lengths: np.ndarray) -> str:
    """Bars of documents by length, one for each power of two; each line says how many and their share of the tokens."""
    bins = np.frexp(lengths)[1] - 1
    counts, tokens = np.bincount(bins), np.bincount(bins, weights=lengths)
    lines = []
    for power in range(int(bins.min()), len(counts)):
        bar = "█" * int(np.ceil(counts[power] / counts.max() * BAR_WIDTH))
        share = tokens[power] / tokens.sum()
        lines.append(
            f"  {2**power:>10,} - {2 ** (power + 1) - 1:<10,} {counts[power]:>10,} {share:>6.1%} of tokens  {bar}"
        )
    middle = f"  median {int(np.median(lengths)):,}, mean {lengths.mean():,.0f}, longest {int(lengths.max()):,}"
    return "\n".join([*lines, middle])


def _shards(dataset: Dataset) -> str:
    sizes = [len(shard) for shard in dataset.shards]
    megabytes = sum(size * dataset.shards[0].dtype.itemsize for size in sizes) / 1e6
    return (
        f"  {dataset.split}: {len(sizes):,} of {min(sizes):,} to {max(sizes):,} tokens, {megabytes:,.1f} MB as "
        f"{dataset.manifest.dtype}, {dataset.shards[0].prefix.name} to {dataset.shards[-1].prefix.name}"
    )


def _longest_tokens(tokenizer: Tokenizer) -> str:
    words = {tokenizer.decode([id_]) for id_ in range(tokenizer.vocab_size) if id_ != tokenizer.eod_id}
    return " ".join(map(repr, sorted((word for word in words if word.strip()), key=lambda w: (-len(w), w))[:8]))


def _samples(dataset: Dataset, tokenizer: Tokenizer, count: int) -> list[str]:
    """The beginnings of documents spread evenly over the split, and the pieces their first tokens are."""
    total = sum(shard.document_count for shard in dataset.shards)
    ends = np.cumsum([shard.document_count for shard in dataset.shards])
    samples = []
    for i in range(min(count, total)):
        number = (2 * i + 1) * total // (2 * min(count, total))
        shard_number = int(np.searchsorted(ends, number, side="right"))
        shard = dataset.shards[shard_number]
        ids = shard.document(number - int(ends[shard_number]) + shard.document_count)
        text = tokenizer.decode(ids[:SAMPLE_CHARACTERS].tolist())[:SAMPLE_CHARACTERS]
        pieces = "|".join(tokenizer.decode([id_]) for id_ in ids[:24].tolist()).replace("\n", "\\n")
        body = "\n".join(f"  | {line}" for line in text.split("\n"))
        samples.append(f"document {number:,} of {total:,}, {len(ids):,} tokens\n{body}\n  first tokens: {pieces}")
    return samples
