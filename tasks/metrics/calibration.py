"""Whether a classifier is right as often as it says.

Letters: N examples, C classes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from config import DataError
from tasks.metrics.check import numbers, same_length

BINS = 10


class Bin(NamedTuple):
    """Examples whose highest probability lies in one of equal intervals."""

    low: float
    high: float
    examples: int
    confidence: float
    """Mean highest probability; the interval's middle where there are no examples."""
    accuracy: float
    """Share that is right; NaN where there are no examples."""


def calibration(true_N: ArrayLike, probability_NC: ArrayLike, bins: int = BINS) -> dict[str, float]:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 3), the Brier score summed over classes, and
    the mean negative log likelihood in nats. `true_N` are numbers of classes, from 0.

    Raises DataError if a row of probabilities does not add up to 1 or a class has no column.
    """
    true_N, probability_NC = _checked(true_N, probability_NC)
    rows = [row for row in reliability(true_N, probability_NC, bins) if row.examples]
    picked_N = probability_NC[np.arange(len(true_N)), true_N]
    squares_N = (probability_NC**2).sum(1) - 2 * picked_N + 1
    return {
        "ece": sum(row.examples * abs(row.accuracy - row.confidence) for row in rows) / len(true_N),
        "brier": float(squares_N.mean()),
        "nll": float(-np.log(np.maximum(picked_N, np.finfo(np.float64).tiny)).mean()),
    }


def reliability(true_N: ArrayLike, probability_NC: ArrayLike, bins: int = BINS) -> list[Bin]:
    """The examples in `bins` equal intervals (low, high] of their highest probability."""
    true_N, probability_NC = _checked(true_N, probability_NC)
    confidence_N, right_N = probability_NC.max(1), probability_NC.argmax(1) == true_N
    place_N = np.digitize(confidence_N, np.arange(1, bins) / bins, right=True)
    rows = []
    for number in range(bins):
        inside_N, low, high = place_N == number, number / bins, (number + 1) / bins
        count = int(inside_N.sum())
        confidence = float(confidence_N[inside_N].mean()) if count else (low + high) / 2
        rows.append(Bin(low, high, count, confidence, float(right_N[inside_N].mean()) if count else float("nan")))
    return rows


def _checked(true_N: ArrayLike, probability_NC: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    true_N, probability_NC = np.asarray(true_N), numbers(probability_NC, "probability")
    same_length(true_N, probability_NC)
    if probability_NC.ndim != 2:
        raise DataError(f"probabilities of shape {probability_NC.shape}: give one for each example and class, [N, C]")
    sums_N = probability_NC.sum(1)
    wrong = np.flatnonzero((np.abs(sums_N - 1) > 1e-3) | (probability_NC < 0).any(1))
    if wrong.size:
        raise DataError(
            f"the probabilities of example {wrong[0]:,} (counted from 0) add up to {sums_N[wrong[0]]:.4f} and the least is "
            f"{probability_NC[wrong[0]].min():.4f}; they must add up to 1 and not be negative"
        )
    classes = probability_NC.shape[1]
    if true_N.min() < 0 or true_N.max() >= classes:
        outside = true_N[(true_N < 0) | (true_N >= classes)][0]
        raise DataError(f"class {outside} has no probability: there are {classes}, from 0 to {classes - 1}")
    return true_N, probability_NC
