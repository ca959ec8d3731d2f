"""What `python -m data inspect` shows of a dataset."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.dataset import Dataset, load_tokenizer, open_dataset
from data.manifest import SPLITS, Manifest
from data.prepare import summary
from data.progress import in_bytes
from data.tokenizer import Tokenizer

BAR_WIDTH = 40
SAMPLE_CHARACTERS = 400


def report(folder: Path, documents: int = 3) -> str:
    """Counts, lengths of documents and decoded samples. Raises DataError if the dataset cannot be opened."""
    manifest = Manifest.load(folder)
    tokenizer = load_tokenizer(folder)
    datasets = [open_dataset(folder, split) for split in SPLITS if manifest.splits.get(split)]
    sections = [
        f"{folder}\n{summary(manifest)}",
        "sources\n"
        + "\n".join(f"  {s.name}: {s.files:,} files, {in_bytes(s.bytes)}" for s in manifest.sources)
        + "\n  prepared with "
        + ", ".join(f"{key} {value}" for key, value in manifest.settings.items()),
        f"tokenizer\n  {tokenizer.vocab_size:,} tokens, end of document {tokenizer.eod_token!r} = {tokenizer.eod_id}, "
        f"fingerprint {tokenizer.fingerprint[:16]}\n  longest words: {_longest_words(tokenizer)}",
        "shards\n" + "\n".join(_shards(dataset) for dataset in datasets),
        f"tokens in a document\n{histogram(*document_lengths(datasets))}",
        *_samples(datasets[0], tokenizer, documents),
    ]
    return "\n\n".join(sections)


def document_lengths(datasets: Sequence[Dataset]) -> tuple[np.ndarray, np.ndarray]:
    """The lengths in tokens that documents have, ascending, and the number of documents of each.

    One shard's lengths are in memory and one index is mapped at a time: there may be 10^10 documents in 10,000 shards.
    """
    found: Counter[int] = Counter()
    for dataset in datasets:
        for shard in dataset.shards:
            lengths, documents = np.unique(replace(shard).lengths, return_counts=True)
            found.update(dict(zip(lengths.tolist(), documents.tolist(), strict=True)))
    pairs = np.array(sorted(found.items()))
    return pairs[:, 0], pairs[:, 1]


def histogram(lengths: np.ndarray, documents: np.ndarray) -> str:
    """Bars of documents by length, one for each power of two; each line says how many and their share of the tokens."""
    bins = np.frexp(lengths)[1] - 1
    counts = np.bincount(bins, weights=documents).astype(np.int64)
    tokens = np.bincount(bins, weights=lengths * documents)
    lines = []
    for power in range(int(bins.min()), len(counts)):
        bar = "█" * int(np.ceil(counts[power] / counts.max() * BAR_WIDTH))
        share = tokens[power] / tokens.sum()
        lines.append(
            f"  {2**power:>10,} - {2 ** (power + 1) - 1:<10,} {counts[power]:>10,} {share:>6.1%} of tokens  {bar}"
        )
    ends, total = np.cumsum(documents), int(documents.sum())
    low, high = lengths[np.searchsorted(ends, [(total - 1) // 2, total // 2], side="right")]
    mean = (lengths * documents).sum() / total
    middle = f"  median {(low + high) // 2:,}, mean {mean:,.0f}, longest {lengths[-1]:,}"
    return "\n".join([*lines, middle])


def _shards(dataset: Dataset) -> str:
    sizes = [len(shard) for shard in dataset.shards]
    size = in_bytes(sum(sizes) * dataset.shards[0].dtype.itemsize)
    return (
        f"  {dataset.split}: {dataset.shards[0].prefix.name} to {dataset.shards[-1].prefix.name}, {len(sizes):,} shards of "
        f"{min(sizes):,} to {max(sizes):,} tokens, {size} as {dataset.manifest.dtype}"
    )


def _longest_words(tokenizer: Tokenizer) -> str:
    tokens = {tokenizer.decode([id_]) for id_ in range(tokenizer.vocab_size) if id_ != tokenizer.eod_id}
    words = sorted((token for token in tokens if token.strip().isalpha()), key=lambda word: (-len(word), word))
    return " ".join(repr(word) for word in words[:8])


def _printable(text: str) -> str:
    """Control characters escaped, so that a document cannot steer the terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


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
        pieces = "|".join(_printable(tokenizer.decode([id_])) for id_ in ids[:24].tolist())
        body = "\n".join(f"  | {_printable(line)}" for line in text.split("\n"))
        samples.append(f"document {number:,} of {total:,}, {len(ids):,} tokens\n{body}\n  first tokens: {pieces}")
    return samples
