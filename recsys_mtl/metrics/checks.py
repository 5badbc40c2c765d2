"""What every metric asks of its arguments, checked in one place."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_ROW_SUM_TOLERANCE = 1e-3  # a softmax computed in float16 stays within this


def check_lengths(lengths: dict[str, int]) -> None:
    """Raise unless all columns, name to number of rows, have one length."""
    if len(set(lengths.values())) > 1:
        raise ValueError(f"All columns must have the same number of rows; found {lengths}")


def check_finite(name: str, values: ArrayLike, *, ndim: int = 1) -> FloatArray:
    """Return the values as float64 after checking dimension and finiteness.

    Parameters
    ----------
    name : str
        What the values are called in an error.
    values : array_like
        Numbers of any type. Nulls of polars or Arrow count as NaN.
    ndim : int, default=1
        Number of dimensions the values must have.

    Returns
    -------
    ndarray of float64
        The values; the same memory where they are float64 already.

    Raises
    ------
    ValueError
        The dimension is wrong, or a value is NaN or infinite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s); found shape {array.shape}")
    if not np.isfinite(array).all():
        num_nan = int(np.isnan(array).sum())
        num_infinite = int(np.isinf(array).sum())
        raise ValueError(
            f"{name} must be finite; found {num_nan} NaN and {num_infinite} infinite "
            f"among {array.size} values. Mask or repair these rows"
        )
    return array


def check_weights(weights: ArrayLike | None, num_rows: int) -> FloatArray:
    """Return the weights as float64 [num_rows]; ones where None."""
    if weights is None:
        return np.ones(num_rows)
    array = check_finite("weights", weights)
    check_lengths({"rows": num_rows, "weights": len(array)})
    if (array < 0).any():
        raise ValueError(f"weights must be 0 or more; found {int((array < 0).sum())} below 0")
    return array


def check_binary(labels: ArrayLike) -> BoolArray:
    """Return labels of 0 and 1 (integers, floats or booleans) as booleans [n]."""
    array = check_finite("labels", labels)
    positive: BoolArray = array == 1
    wrong = array[~positive & (array != 0)]
    if wrong.size:
        raise ValueError(
            f"Binary labels must be 0 or 1; found {wrong.size} others, "
            f"such as {np.unique(wrong)[:5].tolist()}. Threshold them, or use a regression task"
        )
    return positive


def check_classes(labels: ArrayLike, num_classes: int) -> IntArray:
    """Return labels of 0 .. num_classes - 1 as int64 [n]."""
    array = check_finite("labels", labels)
    wrong = array[(array < 0) | (array >= num_classes) | (array != np.floor(array))]
    if wrong.size:
        raise ValueError(
            f"Multiclass labels must be whole numbers from 0 to {num_classes - 1}, one for each "
            f"column of the scores; found {wrong.size} others, such as {np.unique(wrong)[:5].tolist()}"
        )
    return array.astype(np.int64)


def check_probabilities(values: ArrayLike, *, ndim: int = 1) -> FloatArray:
    """Return probabilities as float64, [n] or [n, classes]; rows of the latter sum to 1."""
    array = check_finite("probabilities", values, ndim=ndim)
    outside = int(((array < 0) | (array > 1)).sum())
    if outside:
        raise ValueError(
            f"probabilities must lie in [0, 1]; found {outside} of {array.size} outside. "
            "Pass probabilities, not logits"
        )
    if ndim == 2:
        num_off = int((np.abs(array.sum(axis=1) - 1) > _ROW_SUM_TOLERANCE).sum())
        if num_off:
            raise ValueError(
                f"The probabilities of a row must sum to 1 within {_ROW_SUM_TOLERANCE}; "
                f"found {num_off} of {len(array)} rows that do not. Apply a softmax first"
            )
    return array


def binary_columns(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None
) -> tuple[BoolArray, FloatArray, FloatArray]:
    """Return checked labels, scores and weights of a binary task, each [n]."""
    checked = check_binary(labels)
    numbers = check_finite("scores", scores)
    check_lengths({"labels": len(checked), "scores": len(numbers)})
    return checked, numbers, check_weights(weights, len(checked))


def weighted_mean(values: FloatArray | BoolArray, weights: FloatArray) -> float:
    """Return the weighted mean; the weights' sum must be positive."""
    return float((weights * values).sum() / weights.sum())
