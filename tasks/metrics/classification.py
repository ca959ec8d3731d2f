"""Classes: accuracy, precision, recall and F1, by scikit-learn.

Letters: N examples, C classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from config import DataError
from tasks.metrics.check import numbers, same_length


def classification(true_N: Sequence[Any] | NDArray[Any], predicted_N: Sequence[Any] | NDArray[Any]) -> dict[str, float]:
    """Accuracy, its mean over classes, Matthews' correlation, and precision, recall and F1 as the plain and the weighted
    mean over classes; a class that is never predicted has precision 0.

    Raises DataError if there are not as many predictions as labels.
    """
    from sklearn import metrics

    same_length(true_N, predicted_N)
    values = {
        "accuracy": metrics.accuracy_score(true_N, predicted_N),
        "balanced_accuracy": metrics.recall_score(
            true_N, predicted_N, labels=np.unique(true_N), average="macro", zero_division=0
        ),
        "matthews": metrics.matthews_corrcoef(true_N, predicted_N) if len(np.union1d(true_N, predicted_N)) > 1 else 0.0,
    }
    for average in ("macro", "weighted"):
        three = metrics.precision_recall_fscore_support(true_N, predicted_N, average=average, zero_division=0)
        values |= {f"{name}_{average}": three[i] for i, name in enumerate(("precision", "recall", "f1"))}
    return {name: float(value) for name, value in values.items()}


def class_report(
    true_N: Sequence[int] | NDArray[Any], predicted_N: Sequence[int] | NDArray[Any], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and number of examples of each class; class c is called `names[c]`."""
    from sklearn.metrics import precision_recall_fscore_support

    same_length(true_N, predicted_N)
    columns = precision_recall_fscore_support(true_N, predicted_N, labels=range(len(names)), zero_division=0)
    keys = ("precision", "recall", "f1", "examples")
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {name: dict(zip(keys, row, strict=True)) for name, row in zip(names, rows, strict=True)}


def confusion(
    true_N: Sequence[int] | NDArray[Any], predicted_N: Sequence[int] | NDArray[Any], classes: int
) -> NDArray[np.int64]:
    """Examples [C, C] of each true class (row) that were taken for each class (column)."""
    from sklearn.metrics import confusion_matrix

    same_length(true_N, predicted_N)
    return confusion_matrix(true_N, predicted_N, labels=range(classes))


def binary(true_N: ArrayLike, scores_N: ArrayLike) -> dict[str, float]:
    """Average precision and area under the ROC curve of scores that shall be high where the truth is 1, and the best
    accuracy and F1 that any threshold gives, with it.

    Raises DataError unless both 0 and 1 occur and nothing else.
    """
    from sklearn import metrics

    true_N, scores_N = np.asarray(true_N), numbers(scores_N, "score")
    same_length(true_N, scores_N)
    if (found := np.unique(true_N).tolist()) != [0, 1]:
        raise DataError(f"labels {found}, but pairs need both 0 (different) and 1 (alike), and no others")
    precision, recall, thresholds = metrics.precision_recall_curve(true_N, scores_N)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    false_share, true_share, _ = metrics.roc_curve(true_N, scores_N, drop_intermediate=False)
    alike = true_N.mean()
    return {
        "average_precision": float(metrics.average_precision_score(true_N, scores_N)),
        "roc_auc": float(metrics.roc_auc_score(true_N, scores_N)),
        "best_f1": float(f1.max()),
        "best_f1_threshold": float(thresholds[f1[:-1].argmax()]),
        "best_accuracy": float((true_share * alike + (1 - false_share) * (1 - alike)).max()),
    }
