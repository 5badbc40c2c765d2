"""Tasks: what is predicted, from which label, on which rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field

from recsys_mtl.schema.features import Name
from recsys_mtl.spec import Spec, spec

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@spec
class Task(Spec):
    """What all tasks share.

    Parameters
    ----------
    name
        Name of the task and of the column of its scores.
    label
        Column of its label. A null (or NaN) label is missing: the row says nothing about this task.
    weight
        Weight of the task's loss in the sum over tasks.
    sample_weight
        Column of non-negative row weights for this task's loss and metrics.
    within
        Name of a binary task. Only rows where that task's label is positive are in this task's space;
        on others its label is ignored (a conversion rate is defined within clicks).
    parents
        Names of the tasks that this one builds on, for heads in which one task's tower reads
        another's. By default the task it is `within`, if any. No task may lead back to itself.
    teacher
        Column of another model's scores of the same rows, on the scale of this task's own: a
        probability, or a number on the label's scale. Training reads it, and nothing else does:
        rows for validation and scoring need no such column. Predict rows that the teacher was
        fitted on out of fold, or it tells their labels.
    teacher_share
        What of the label training takes from the teacher, in (0, 1]: it learns ``(1 - share) * label +
        share * score``; where the label is missing the score alone, and where the score is null the
        label alone.

    References
    ----------
    G. Hinton, O. Vinyals and J. Dean, "Distilling the Knowledge in a Neural Network", 2015.
    D. Lopez-Paz et al., "Unifying distillation and privileged information", ICLR 2016.
    """

    name: Name
    _: KW_ONLY
    label: Name
    weight: Weight = 1.0
    sample_weight: Name | None = None
    within: Name | None = None
    parents: Annotated[Sequence[Name], AfterValidator(tuple)] | None = None
    teacher: Name | None = None
    teacher_share: Annotated[float, Field(gt=0, le=1)] = 0.5

    @property
    def built_on(self) -> tuple[str, ...]:
        """The tasks whose towers this one's may read: `parents`, or the task it is `within`."""
        if self.parents is not None:
            return tuple(self.parents)
        return () if self.within is None else (self.within,)

    @property
    def num_logits(self) -> int:
        """Outputs the network has for this task."""
        return 1


@spec
class Binary(Task, kind="binary"):
    """A yes/no task such as a click. Labels are 0/1 or booleans; scores are probabilities.

    Parameters
    ----------
    joint
        For a task `within` another: name of one more score, the probability that this label and those
        of all tasks it is within are positive (ESMM's pCTCVR). It is their product, so never larger.
    loss
        The own loss, of one row at a time: ``"bce"``, or ``"focal"``, in which rows that are easy
        count less.
    focal_gamma
        How much less: a row whose label has probability p counts ``(1 - p) ** focal_gamma`` times, at
        least 0. At 0 it is ``"bce"``.
    positive_weight
        What the own loss of rows with a positive label is multiplied with, above 0. As torch's
        ``pos_weight`` it is no part of the mean's denominator: the loss grows with it. Scores
        then are no calibrated probabilities.
    ranking
        A loss that compares the rows of one user or request: ``"pairwise"``, all pairs of a
        positive and a negative row (BPR), or ``"listwise"``, each positive row against all its
        group (softmax). A group whose labels are all alike says nothing.
    ranking_share
        Share of the ranking loss beside the own loss, in [0, 1]. With 1 the own loss plays no part:
        scores rank within a group but are no calibrated probabilities.
    group
        Column of the user or request whose rows are compared, by default the user's key. A row
        without one is a group of its own.

    References
    ----------
    T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 4.
    S. Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009.
    Z. Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach", ICML 2007.
    """

    _: KW_ONLY
    joint: Name | None = None
    loss: Literal["bce", "focal"] = "bce"
    focal_gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0
    positive_weight: Factor = 1.0
    ranking: Literal["pairwise", "listwise"] | None = None
    ranking_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    group: Name | None = None

    def __post_init__(self) -> None:
        if self.joint is not None and self.within is None:
            raise ValueError(
                f"joint={self.joint!r} needs within: it is the probability of both labels"
            )
        if self.group is not None and self.ranking is None:
            raise ValueError(
                f"group={self.group!r} needs ranking: the own loss compares no rows. Choose"
                " 'pairwise' or 'listwise', or leave group out"
            )
        if self.teacher is not None and (self.loss == "focal" or self.ranking is not None):
            raise ValueError(
                f"teacher={self.teacher!r} needs a loss of labels between 0 and 1: choose loss='bce'"
                " without ranking, or leave teacher out"
            )


class LabelBins(NamedTuple):
    """Numbers evenly spaced from `low` to `high`, both among them."""

    low: float
    high: float
    number: int


@spec
class Regression(Task, kind="regression"):
    """A number such as a rating. Scores are on the label's scale.

    Parameters
    ----------
    loss
        ``"mse"``, or ``"huber"`` where few far-off labels must not rule. Both are taken on the label
        centred by its training mean and divided by its training deviation. ``"bins"`` learns the
        label's distribution over `num_bins` numbers evenly spaced from bound to bound, by
        cross-entropy; the score is its mean. A label between two of them counts for both, for the
        nearer one more, so that their mean is the label.
    huber_delta
        Where Huber's loss turns from square to linear, in standard deviations of the label.
    num_bins
        Numbers that ``"bins"`` spreads the label over, at least 2; the first and the last are the
        bounds. Labels on a grid, such as stars, need one for each of its values.
    bounds
        Smallest and largest possible label. Labels outside are an error; scores are clipped to it.
        ``"bins"`` needs them.

    Notes
    -----
    The loss of ``"bins"`` is in nats, and so of another scale than the others': at the base rates it is
    the entropy of the labels' histogram, at most ``log(num_bins)``, where a squared error is 1. It does
    not go down to 0 where labels lie between the bins. `weight` sets what it counts.

    References
    ----------
    E. Imani and M. White, "Improving Regression Performance with Distributional Losses", ICML 2018.
    J. Farebrother et al., "Stop Regressing: Training Value Functions via Classification for Scalable
    Deep RL", ICML 2024, section 3.1: two-hot targets.
    """

    _: KW_ONLY
    loss: Literal["mse", "huber", "bins"] = "mse"
    huber_delta: Factor = 1.0
    num_bins: Annotated[int, Field(ge=2)] = 51
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.teacher is not None and self.loss == "bins":
            raise ValueError(
                f"teacher={self.teacher!r} gives the mean of a label, no distribution: choose loss='mse'"
                " or 'huber', or leave teacher out"
            )
        if self.bounds is None:
            if self.loss == "bins":
                raise ValueError(
                    "bounds are needed by loss='bins', which spreads bins between them. Found None:"
                    " give the smallest and the largest possible label, as in bounds=(1, 5)"
                )
            return
        low, high = self.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"bounds must be two finite numbers, low < high. Found {self.bounds}")

    @property
    def bins(self) -> LabelBins | None:
        """The numbers that the label is spread over; None unless the loss is ``"bins"``."""
        if self.loss != "bins" or self.bounds is None:
            return None
        return LabelBins(*self.bounds, self.num_bins)

    @property
    def num_logits(self) -> int:
        """Outputs the network has for this task: one, or one per bin."""
        return self.num_bins if self.loss == "bins" else 1


@spec
class Multiclass(Task, kind="multiclass"):
    """One of several classes. Labels are integers 0 .. num_classes - 1; scores are probabilities.

    Parameters
    ----------
    num_classes
        Number of classes.
    class_weights
        What the loss of a row counts by its label's class, above 0, one number per class; None: all
        alike. As torch's ``weight`` it is a part of the mean's denominator, so that only the ratios
        matter. Scores then are no calibrated probabilities.
    """

    _: KW_ONLY
    num_classes: Annotated[int, Field(ge=2)]
    class_weights: Annotated[Sequence[Factor], AfterValidator(tuple)] | None = None

    def __post_init__(self) -> None:
        if self.teacher is not None:
            raise ValueError(
                f"teacher={self.teacher!r} is one number a row, which several classes cannot be: leave"
                " it out"
            )
        if self.class_weights is not None and len(self.class_weights) != self.num_classes:
            raise ValueError(
                f"class_weights must hold one number for each of the {self.num_classes} classes."
                f" Found {len(self.class_weights)}"
            )

    @property
    def num_logits(self) -> int:
        """Outputs the network has for this task: one per class."""
        return self.num_classes


def find_circle(outer: Mapping[str, Sequence[str]]) -> str | None:
    """Return a way from a task back to itself, as ``"a -> b -> a"``; None where there is none.

    Parameters
    ----------
    outer
        For each task the names of those it builds on or is within; other names lead nowhere.
    """
    left = {name: [other for other in others if other in outer] for name, others in outer.items()}
    while roots := [name for name, others in left.items() if not set(others) & set(left)]:
        for name in roots:
            del left[name]
    if not left:
        return None
    way = [next(iter(left))]
    while way[-1] not in way[:-1]:  # whoever is left has another one left to go to
        way.append(next(other for other in left[way[-1]] if other in left))
    return " -> ".join(way[way.index(way[-1]) :])
