"""How fast each objective's batches are made: python -m benchmarks.objectives

One process, one thread, batches of 32 rows of 512 tokens from a shard of synthetic text in the page cache; medians over
interleaved rounds. Beside masked_lm stands transformers' DataCollatorForLanguageModeling (numpy) on the same rows.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from benchmarks.stream import write_corpus
from benchmarks.stream_peers import VOCAB_SIZE
from config.data_schema import DataSection
from config.objective_schema import (
    CausalLM,
    Contrastive,
    MaskedLM,
    ObjectiveConfig,
    PrefixLM,
    SpanCorruption,
    row_shape,
)
from config.schema import BatchSection
from data.manifest import Manifest
from data.stream import open_stream
from data.tokenizer import TOKENIZER_NAME, with_end_token

ROWS, ROW_LENGTH = 32, 512
OBJECTIVES: dict[str, ObjectiveConfig] = {
    "causal_lm": CausalLM(),
    "causal_lm, fim_rate 0.5": CausalLM(fim_rate=0.5),
    "masked_lm": MaskedLM(),
    "masked_lm, whole words": MaskedLM(whole_word=True),
    "masked_lm, nsp": MaskedLM(pairs="nsp"),
    "masked_lm, sop": MaskedLM(pairs="sop"),
    "span_corruption": SpanCorruption(),
    "prefix_lm": PrefixLM(),
    "contrastive": Contrastive(),
}


def write_tokenizer(folder: Path) -> None:
    """Give the corpus a tokenizer of words, and its manifest the fingerprint."""
    model = tokenizers.models.WordLevel({f"w{number}": number for number in range(VOCAB_SIZE)}, unk_token="w0")
    tokenizer = with_end_token(tokenizers.Tokenizer(model))
    tokenizer.save(folder / TOKENIZER_NAME)
    Manifest.load(folder).model_copy(update={"tokenizer_fingerprint": tokenizer.fingerprint}).save(folder)


def batches(folder: Path, objective: ObjectiveConfig) -> Iterator[Any]:
    data = DataSection.model_validate(
        {"datasets": [{"path": str(folder)}], "row_length": ROW_LENGTH, "prefetch_steps": 0}
    )
    batch = BatchSection(global_batch_size=ROWS, micro_batch_size=ROWS)
    return iter(open_stream(data, batch, objective, seed=1, vocab_size=VOCAB_SIZE + 128).steps(0))


def collated_by_transformers(folder: Path) -> Iterator[Any]:
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / TOKENIZER_NAME), mask_token="[MASK]", pad_token="[PAD]"
    )
    collate = DataCollatorForLanguageModeling(tokenizer, return_tensors="np")
    for (batch,), _ in batches(folder, CausalLM()):
        yield collate([{"input_ids": row} for row in batch.tokens_BT])


def rate(steps: Iterator[Any], seconds: float) -> float:
    """Batches a second."""
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(steps)
        count += 1
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000_000, help="size of the corpus (default 20 million)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each (default 5)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a measurement (default 0.3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder, options.tokens)
        write_tokenizer(folder)
        makers = {name: batches(folder, objective) for name, objective in OBJECTIVES.items()}
        makers["transformers' collator, mlm"] = collated_by_transformers(folder)
        rates: dict[str, list[float]] = {name: [] for name in makers}
        for steps in makers.values():
            next(steps)
        for _ in range(options.rounds):
            for name, steps in makers.items():
                rates[name].append(rate(steps, options.seconds))
    print("| objective | M tokens of text/s |\n| --- | --- |")
    for name, found in rates.items():
        text = row_shape(OBJECTIVES[name], ROW_LENGTH).text if name in OBJECTIVES else ROW_LENGTH
        print(f"| {name} | {statistics.median(found) * ROWS * text / 1e6:,.1f} |")


if __name__ == "__main__":
    main()
