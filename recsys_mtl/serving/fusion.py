"""Fusion: one number to rank by, from the scores of several tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from recsys_mtl.errors import EncodingError, SchemaError
from recsys_mtl.schema import Multiclass, Schema
from recsys_mtl.spec import Spec, spec

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Doubles = npt.NDArray[np.float64]


@spec
class Fusion(Spec):
    """The weighted product of scores, as its logarithm: ``sum of weight * ln(score)``.

    It rises in each score, and ranks as the product of powers does without falling below the smallest
    number.

    Parameters
    ----------
    weights
        By task or joint score, above 0.
    name
        Column of the result.

    Examples
    --------
    >>> import numpy as np
    >>> fused = Fusion({"ctr": 1.0, "interest": 0.5})
    >>> fused({"ctr": np.array([0.5]), "interest": np.array([0.25])}).round(4).tolist()
    [-1.3863]
    """

    weights: dict[str, Weight]
    name: str = "fused"

    @classmethod
    def parse(cls, text: str) -> Fusion:
        """Read ``"ctr=1,interest=0.5"``.

        Raises
        ------
        SchemaError
            If the text is none.
        """
        weights: dict[str, float] = {}
        for piece in text.split(","):
            name, _, weight = piece.partition("=")
            try:
                weights[name.strip()] = float(weight)
            except ValueError as error:
                raise SchemaError(
                    "A fusion must be written as name=weight, name=weight. Found"
                    f" {text!r}: {piece!r} has no number as its weight."
                ) from error
        return cls(weights)

    def check(self, schema: Schema, scores: list[str]) -> None:
        """Check that the scores are there and are single numbers.

        Raises
        ------
        SchemaError
            If they are not.
        """
        if not self.weights:
            raise SchemaError("A fusion must weigh a score. Found none.")
        several = {task.name for task in schema.tasks if isinstance(task, Multiclass)}
        for name in self.weights:
            if name not in scores or name in several:
                known = [one for one in scores if one not in several]
                raise SchemaError(
                    f"A fusion must weigh scores that are one number a row. Found {name!r}; such"
                    f" scores: {known}."
                )
        if self.name in scores:
            raise SchemaError(
                f"The fused score must have a name of its own. Found {self.name!r}, which is a task."
            )

    def __call__(self, scores: Mapping[str, npt.NDArray[np.floating]]) -> Doubles:
        """Return the fused score of every row, shape (n,).

        Raises
        ------
        EncodingError
            If a score is NaN, 0 or less: it has no logarithm.
        """
        total: Doubles = np.zeros(len(scores[next(iter(self.weights))]))
        for name, weight in self.weights.items():
            values = np.asarray(scores[name], np.float64)
            wrong = ~(values > 0)
            if wrong.any():
                raise EncodingError(
                    f"Scores of {name!r} must be above 0 to be fused. Found"
                    f" {values[wrong][0]!r} in {int(wrong.sum())} rows: leave it out of the fusion."
                )
            total += weight * np.log(values)
        return total
