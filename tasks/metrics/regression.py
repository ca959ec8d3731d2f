"""Numbers: correlations by scipy, and errors."""

import math

import numpy as np
from numpy.typing import ArrayLike

from config import DataError
from tasks.metrics.check import numbers, same_length


def regression(true_N: ArrayLike, predicted_N: ArrayLike) -> dict[str, float]:
    """Spearman's and Pearson's correlation, the mean squared and the mean absolute error.

    A correlation is NaN where all predictions are equal. Raises DataError if there are not as many predictions as true
    values, if one is not finite, or if all true values are equal, so that nothing correlates with them.
    """
    from scipy import stats

    true_N, predicted_N = numbers(true_N, "true value"), numbers(predicted_N, "prediction")
    same_length(true_N, predicted_N)
    if np.ptp(true_N) == 0:
        raise DataError(
            f"all {len(true_N):,} true values are {true_N[0]:g}: a correlation needs at least two different ones"
        )
    constant = np.ptp(predicted_N) == 0
    difference_N = predicted_N - true_N
    return {
        "spearman": math.nan if constant else float(stats.spearmanr(true_N, predicted_N).statistic),
        "pearson": math.nan if constant else float(stats.pearsonr(true_N, predicted_N).statistic),
        "mse": float(np.mean(difference_N**2)),
        "mae": float(np.mean(np.abs(difference_N))),
    }
