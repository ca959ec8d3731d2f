"""Documents to predict: of files as they are, or of a prepared dataset, as tokens and the UTF-8 bytes of their text."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from config import ConfigError, DataError
from config.contrastive_schema import Similarity
from config.data_schema import DataSection
from config.objective_schema import WRITE_TEXT, MaskedLM, PrefixLM, SpanCorruption, row_shape
from data.batch import IGNORE, Batch
from data.dataset import load_tokenizer, open_dataset
from data.documents import ReadOptions, read_all
from data.manifest import Split
from data.sources import plan
from data.specials import special_names
from data.tokenizer import Tokenizer
from data.validation import open_validation
from engine.objective import choose_objective, count_targets
from engine.scores import LANGUAGE, count_bytes
from model import GPT, Bert
from tasks.checkpoints import Trained
from tasks.evaluation.language import check_window, perplexity
from tasks.evaluation.masked import pseudo_perplexity
from tasks.evaluation.result import Result

Documents = Iterator[tuple[list[int], int]]


def read_text(path: str, tokenizer: Tokenizer, text_field: str) -> Documents:
    """The documents of a file or of the files in a folder, in every format of `data prepare` and without its cleaning.

    Raises DataError if it cannot be read, or a document in it.
    """
    options = ReadOptions(text_field=text_field)
    for source in plan([path], options):
        for document in read_all(source.units, options):
            yield tokenizer.encode(document.text), len(document.text.encode())


def read_dataset(folder: Path, split: Split, trained: Trained) -> Documents:
    """The documents of a prepared dataset without their ends. The bytes of a shard come with its last document.

    Raises DataError if the dataset was written with another tokenizer than the model's.
    """
    check_tokenizer(folder, trained)
    dataset = open_dataset(folder, split)
    for shard, entry in zip(dataset.shards, dataset.manifest.splits[split], strict=True):
        for number in range(shard.document_count):
            tokens = shard.document(number).tolist()
            ended = tokens[-1:] == [dataset.manifest.eod_id]
            last = number == shard.document_count - 1
            yield tokens[:-1] if ended else tokens, entry.text_bytes if last else 0


def check_writes(trained: Trained, option: str) -> None:
    """Raises ConfigError if the model has no language model's head, or one that was not trained."""
    if trained.objective.name not in WRITE_TEXT:
        fitting = "--sts, --pairs, --retrieval or --classify"
        fitting = fitting if isinstance(trained.objective, Similarity) else "--examples"
        raise ConfigError(
            f"{option} needs a language model, but this one learned objective {trained.objective.name}: give {fitting}"
        )


def check_tokenizer(folder: Path, trained: Trained) -> None:
    """Raises DataError if a dataset's tokens are not the model's, or the objective's special tokens would not be."""
    names = special_names(trained.objective)
    ours, theirs = (each.with_special_tokens(names) for each in (trained.tokenizer, load_tokenizer(folder)))
    if (ours.text_fingerprint, ours.ids_of(names)) != (theirs.text_fingerprint, theirs.ids_of(names)):
        raise DataError(
            f"{folder}: written with another tokenizer ({theirs.text_fingerprint[:16]}) than the model's "
            f"({ours.text_fingerprint[:16]}): prepare it again with --tokenizer and the model's tokenizer.json, or give the "
            "texts themselves to --text"
        )


def predict(
    trained: Trained, documents: Documents, source: str, window: int | None, stride: int | None, device: torch.device
) -> Result:
    """How well a decoder or an encoder predicts documents. Raises ConfigError for an impossible window or stride."""
    model, window = trained.model, usual_window(trained) if window is None else window
    if isinstance(model, GPT):
        settings = {"window": window, "stride": window if stride is None else stride}
        check_window(**settings, longest=trained.config.max_positions)
        values, curve = perplexity(model, documents, end_id=trained.tokenizer.eod_id, device=device, **settings)
        return Result("perplexity", source, "bits_per_byte", values, settings, curves=[curve])
    assert isinstance(model, Bert)
    if stride is not None:
        raise ConfigError(f"--stride {stride}: an encoder sees both sides of a token in disjoint windows; leave it out")
    check_window(window, window, trained.config.max_positions, least=3)
    values = pseudo_perplexity(model, documents, trained.tokenizer, window=window, device=device)
    return Result("pseudo-perplexity", source, "pseudo_perplexity", values, {"window": window})


def usual_window(trained: Trained) -> int:
    """Length of the rows that the model was trained on; without a recipe, of the longest ones that it reads."""
    longest = trained.config.max_positions
    return min(trained.trained_by.data.row_length, longest) if trained.trained_by else longest


def held_out_loss(
    trained: Trained, folder: Path, split: Split, window: int | None, rows: int, device: torch.device
) -> Result:
    """Loss in nats a target of each part of the model's objective on fixed rows of a dataset, drawn as for validation.

    Raises DataError as `check_tokenizer`, ConfigError if the objective does not learn from text alone, or for an
    impossible window or number of rows.
    """
    if not isinstance(trained.objective, MaskedLM | SpanCorruption | PrefixLM):
        raise ConfigError(f"--dataset has no loss of objective {trained.objective.name} to measure: give --examples")
    if rows < 1:
        raise ConfigError(f"--rows {rows:,}: give at least 1")
    window = usual_window(trained) if window is None else window
    check_window(window, window, trained.config.max_positions)
    try:
        row_shape(trained.objective, window)
    except ValueError as error:
        raise ConfigError(f"--window {window:,}: {error}") from None
    check_tokenizer(folder, trained)
    batches = _held_out_rows(trained, folder, split, window, rows)
    objective = choose_objective(trained.objective, alone=True)
    targets = count_targets(batches)
    total = dict.fromkeys(targets, 0.0)
    with torch.no_grad():
        for batch in batches:
            for part, loss in objective(trained.model, batch, device).items():
                total[part] += loss.total.item()
    values = {f"{part}_loss": total[part] / max(count, 1) for part, count in targets.items()}
    headline = next(iter(values))
    if text_bytes := count_bytes(batches, trained.tokenizer):
        values["bits_per_byte"] = sum(total[part] for part in LANGUAGE if part in total) / math.log(2) / text_bytes
    values |= {f"{part}_targets": count for part, count in targets.items()}
    read = sum(int((batch.labels_BT != IGNORE).any(axis=1).sum()) for batch in batches if batch.labels_BT is not None)
    settings = {"objective": trained.objective.name, "window": window, "rows": read}
    return Result("held-out loss", f"{folder} ({split})", headline, values, settings)


def _held_out_rows(trained: Trained, folder: Path, split: Split, row_length: int, rows: int) -> list[Batch]:
    masking = trained.trained_by is not None and trained.trained_by.data.document_masking
    data = DataSection.model_validate(
        {"datasets": [{"path": str(folder)}], "row_length": row_length, "document_masking": masking}
    )
    return open_validation(
        data,
        trained.objective,
        split=split,
        rows=rows,
        micro_batch_size=8,
        vocab_size=trained.config.vocab_size,
    )
