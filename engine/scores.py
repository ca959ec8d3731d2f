"""How good predictions are: what validation reports of an objective with a head of its own, over all ranks.

`python -m tasks evaluate` has the full reports.
"""

from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from config.objective_schema import ObjectiveConfig
from config.supervised_schema import Labelled, Regression, TokenClassification
from data.batch import IGNORE, Batch
from data.tokenizer import Tokenizer
from engine.dist import World, all_sum, from_main, gather_to_main
from model import TaskLoss

Predictions = list[NDArray]
"""Of each row of a batch that counts: what was predicted and what is right [2, targets]."""
Span = tuple[int, int, str]
LANGUAGE = ("lm", "mlm")
"""Parts of a loss whose targets are tokens."""


def count_bytes(batches: list[Batch], tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of the text that a language model is to predict in batches; special tokens are targets without bytes.

    0 where no target is a token, or the tokens do not tell their bytes (see `Tokenizer.byte_lengths`).
    """
    lengths_V = tokenizer.byte_lengths
    if lengths_V is None:
        return 0
    labels = [batch.labels_BT for batch in batches if batch.parts[0] in LANGUAGE and batch.labels_BT is not None]
    return sum(int(lengths_V[labels_BT[labels_BT != IGNORE]].sum()) for labels_BT in labels)


def bytes_per_target(batches: list[Batch], tokenizer: Tokenizer, world: World) -> float:
    """Bytes of `count_bytes` for each target of all ranks' batches. A language model's mean loss in nats, divided by it and
    by log(2), is in bits a byte."""
    targets = sum(batch.targets()[batch.parts[0]] for batch in batches)
    all_bytes, all_targets = all_sum([count_bytes(batches, tokenizer), targets], world.device)
    return all_bytes / max(all_targets, 1)


def predictions(batch: Batch, loss: TaskLoss) -> Predictions:
    """A batch's targets by row."""
    labels_N = loss.labels_N.cpu().numpy()
    pairs_2N = np.stack([loss.predicted_N.cpu().numpy(), labels_N])[:, labels_N != IGNORE]
    assert batch.labels_BT is not None
    targets_B = np.count_nonzero(batch.labels_BT != IGNORE, axis=1)
    return [pairs for pairs in np.split(pairs_2N, np.cumsum(targets_B)[:-1], axis=1) if pairs.size]


def scores(objective: ObjectiveConfig, found: list[Predictions], world: World) -> dict[str, float]:
    """Scores of all ranks' predictions, on every rank; none of an objective without predictions."""
    if not isinstance(objective, Labelled | Regression):
        return {}
    gathered = gather_to_main([pairs for rows in found for pairs in rows], world)
    return from_main(score(objective, [pairs for of_rank in gathered for pairs in of_rank]) if world.is_main else None)


def score(objective: Labelled | Regression, rows: Predictions) -> dict[str, float]:
    """Accuracy and F1 of labels, correlations of numbers. F1 is macro-averaged over labels; of tags of entities it is
    that of whole entities."""
    predicted, right = np.concatenate(rows, axis=1)
    if isinstance(objective, Regression):
        return {"pearson": correlation(predicted, right), "spearman": correlation(ranks(predicted), ranks(right))}
    accuracy = float(np.mean(predicted == right))
    entities = isinstance(objective, TokenClassification) and objective.has_entities
    f1 = entity_f1(rows, objective.labels) if entities else macro_f1(predicted, right)
    return {"accuracy": accuracy, "f1": f1}


def macro_f1(predicted: NDArray, right: NDArray) -> float:
    """Mean F1 of the labels that are predicted or right somewhere."""
    values = []
    for label in np.union1d(predicted, right):
        hits = np.count_nonzero((predicted == label) & (right == label))
        values.append(2 * hits / (np.count_nonzero(predicted == label) + np.count_nonzero(right == label)))
    return float(np.mean(values))


def entity_f1(rows: Predictions, labels: tuple[str, ...]) -> float:
    """F1 of entities with the right bounds and the right type (strict IOB2); 0 if there are none on either side."""
    hits = total = 0
    for predicted, right in rows:
        found, true = (spans([labels[int(number)] for number in numbers]) for numbers in (predicted, right))
        hits += len(found & true)
        total += len(found) + len(true)
    return 2 * hits / total if total else 0.0


def spans(tags: list[str]) -> set[Span]:
    """Entities (first word, word after the last, type) of IOB2 tags: B- begins one, I- of the same type goes on with it."""
    found: set[Span] = set()
    begin, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        if kind and not (mark == "I" and name == kind):
            found.add((begin, place, kind))
            kind = ""
        if mark == "B":
            begin, kind = place, name
    return found


def ranks(values: NDArray) -> NDArray:
    """Place of each value in order, from 0; equal ones share the mean of theirs."""
    order = np.argsort(values, kind="stable")
    placed = np.empty(len(values))
    for _, group in groupby(range(len(values)), key=lambda place: values[order[place]]):
        places = list(group)
        placed[order[places]] = np.mean(places)
    return placed


def correlation(first: NDArray, second: NDArray) -> float:
    """Pearson's; 0 if either does not vary."""
    first, second = (values.astype(np.float64) - values.mean(dtype=np.float64) for values in (first, second))
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / size if size else 0.0
