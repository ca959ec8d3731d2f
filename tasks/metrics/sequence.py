"""Entities in tagged sentences: seqeval's strict IOB2, where an entity counts only if type and both ends are right."""

from collections.abc import Sequence

from config import DataError
from tasks.metrics.check import same_length

Tags = Sequence[Sequence[str]]


def sequence(true: Tags, predicted: Tags) -> dict[str, float]:
    """Precision, recall and F1 over all entities, F1 as the plain mean over types, and the accuracy of single tags. Where
    there are no entities, all but the accuracy are 0.

    An I- that continues no entity of its type is none (strict IOB2). Raises DataError where a sentence has not as many
    predicted tags as true ones, or a tag is not O, B-TYPE or I-TYPE.
    """
    from seqeval import metrics

    check_tags(true, predicted)
    options = _strict() | {"zero_division": 0}
    lists = [list(map(list, tags)) for tags in (true, predicted)]
    f1_by_type = [row["f1"] for row in entity_report(true, predicted).values()]
    return {
        "precision": float(metrics.precision_score(*lists, **options)),
        "recall": float(metrics.recall_score(*lists, **options)),
        "f1": float(metrics.f1_score(*lists, **options)),
        "f1_macro": sum(f1_by_type) / max(len(f1_by_type), 1),
        "tag_accuracy": float(metrics.accuracy_score(*lists)),
    }


def entity_report(true: Tags, predicted: Tags) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and number of true entities of each type. Raises DataError as `sequence`."""
    from seqeval.metrics import classification_report

    check_tags(true, predicted)
    lists = [list(map(list, tags)) for tags in (true, predicted)]
    report = classification_report(*lists, output_dict=True, zero_division=0, **_strict())
    keys = {"precision": "precision", "recall": "recall", "f1-score": "f1"}
    return {
        name: {ours: float(row[theirs]) for theirs, ours in keys.items()} | {"examples": int(row["support"])}
        for name, row in report.items()
        if not name.endswith(" avg")
    }


def check_tags(true: Tags, predicted: Tags) -> None:
    """Raises DataError at the first sentence that cannot be compared."""
    same_length(true, predicted)
    for number, (expected, found) in enumerate(zip(true, predicted, strict=True)):
        if len(expected) != len(found):
            raise DataError(
                f"sentence {number:,} (counted from 0) has {len(expected):,} true tags, but {len(found):,} predicted ones: "
                "give one for each word"
            )
        for tag in (*expected, *found):
            if tag != "O" and not (tag[:2] in ("B-", "I-") and tag[2:]):
                raise DataError(
                    f"sentence {number:,} (counted from 0) has the tag {tag!r}: use O, B-TYPE or I-TYPE (IOB2)"
                )


def _strict() -> dict:
    from seqeval.scheme import IOB2

    return {"mode": "strict", "scheme": IOB2}
