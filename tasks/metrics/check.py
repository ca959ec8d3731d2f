"""What all metrics ask of their inputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from config import DataError


def same_length(true: Sequence[Any] | NDArray[Any], predicted: Sequence[Any] | NDArray[Any]) -> None:
    """Raises DataError unless there are as many predictions as truths, and at least one."""
    if len(true) != len(predicted):
        raise DataError(
            f"{len(true):,} true values, but {len(predicted):,} predictions: there must be one for each, in the same order"
        )
    if not len(true):
        raise DataError("there is nothing to measure: no example was given")


def numbers(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """The values as float64. Raises DataError at the first one that is not a finite number."""
    array = np.asarray(values, np.float64)
    wrong = np.flatnonzero(~np.isfinite(array))
    if wrong.size:
        raise DataError(
            f"{what} {wrong[0]:,} (counted from 0) is {array.flat[wrong[0]]}, not a finite number; {wrong.size:,} are not"
        )
    return array
