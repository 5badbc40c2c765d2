"""The document of `make results`: tables of means and intervals, and a verdict in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from recsys_mtl import compare
from recsys_mtl.metrics import Comparison, Difference
from recsys_mtl.schema import Regression, Task
from result_models import SETTINGS, SHARING
from result_sets import DataSet

TREES = "LightGBM"
ALONE = "single tasks"
TAUGHT = ("PLE, taught by LightGBM", "5 x PLE, taught by LightGBM")
LINEAR, DEFAULTS = "hashed linear", "defaults"
HEADLINES = {"binary": ("auc", "gauc", "pcoc", "ece"), "regression": ("rmse", "mae")}
NETWORKS = ("SharedBottom", "MMoE", "PLE")
CLOSE, AMISS = 0.005, 0.05
"""A model within the first of the best AUC ranks well; a PCOC that far from 1 is miscalibrated."""


def write_document(
    path: Path, folder: Path, sets: Sequence[DataSet], names: Mapping[str, Sequence[str]]
) -> None:
    """Write the document from the scores that are there."""
    lines = [
        "# Results",
        "",
        "Written by `make results`. Everything was chosen on the validation rows; models were then fitted on",
        "train and valid together and scored test once. Values are means over seeds, with the deviation of the",
        "seeds; intervals (95 %) are of paired differences, users drawn again 1,000 times, and with several",
        "seeds these too. The last column is the median of the seconds of a seed, from the choice to the",
        "scores, on one shared core. Features of earlier rows (MovieLens has none) are known up to the end of",
        "valid, and the same for trees and networks (`data/result_sets.py`).",
        "",
        "Each network but `defaults` has these settings, found on valid:",
        "",
        "```python",
        *(f"{name} = {value!r}" for name, value in SETTINGS.items()),
        "```",
        "",
        *(f"- {name}: `{sharing!r}`" for name, sharing in SHARING.items()),
        "- single tasks: a SharedBottom for each task, alone.",
        "- defaults: `MultiTaskRanker(schema)`, nothing set.",
        "- taught by LightGBM: `teacher=` of every task holds scores of trees that did not see the row.",
        "- 5 x: five networks of other seeds in one model, by their mean.",
        "- hashed linear: logistic and ridge regression on hashed ids and columns, no features of earlier rows.",
    ]
    for data in sets:
        lines += _section(data, folder, names[data.name])
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _section(data: DataSet, folder: Path, names: Sequence[str]) -> list[str]:
    found = {name: _scores(folder, data, name) for name in names}
    found = {name: scores for name, scores in found.items() if scores}
    test = data.split("test")
    first = next(iter(found))
    everyone = compare(test, found, schema=data.schema, replicates=20)
    lines = ["", f"## {data.title}", "", f"{test.count():,} test rows.", ""]
    lines += _table(data, folder, found, everyone, first)
    lines += ["", "### Paired differences", "", *_HEAD]
    pairs = [(name, TREES) for name in (*NETWORKS, DEFAULTS, *TAUGHT)]
    pairs += [(name, ALONE) for name in NETWORKS] + [(DEFAULTS, LINEAR)]
    pairs += [("MMoE", "SharedBottom"), ("PLE", "SharedBottom"), (TAUGHT[0], "PLE")]
    pairs += [(name, "PLE") for name in found if name.startswith("PLE + ")]
    verdicts: list[tuple[str, str, Difference]] = []
    for one, other in pairs:
        if one in found and other in found:
            paired = compare(test, {one: found[one], other: found[other]}, schema=data.schema)
            for task in data.schema.tasks:
                metric = "rmse" if isinstance(task, Regression) else "auc"
                verdicts.append((one, other, paired.find(task.name, metric)))
    lines += [_line(one, other, found_) for one, other, found_ in verdicts]
    lines += ["", "### Calibration", "", *_miscalibrated(data, found, everyone, first)]
    return [*lines, "", "### In words", "", *_verdict(verdicts)]


_HEAD = [
    "| model | against | task | metric | difference | 95 % | verdict |",
    "| --- | --- | --- | --- | --- | --- | --- |",
]


def _scores(folder: Path, data: DataSet, name: str) -> list[pl.DataFrame]:
    place = folder / data.name / name.replace(" ", "_")
    return [pl.read_parquet(one) for one in sorted(place.glob("*.parquet"))]


def _table(
    data: DataSet,
    folder: Path,
    found: Mapping[str, Sequence[pl.DataFrame]],
    everyone: Comparison,
    first: str,
) -> list[str]:
    columns = [(task, metric) for task in data.schema.tasks for metric in HEADLINES[str(task.kind)]]
    header = ["model", "seeds", *(f"{task.name} {metric}" for task, metric in columns)]
    lines = [_row([*header, "parameters", "s"]), _row(["---"] * (len(header) + 2))]
    for name, seeds in found.items():
        cells = [name, str(len(seeds))]
        for task, metric in columns:
            mean = _value(everyone, task, metric, name, first)
            cells.append(f"{mean:.4f}{_spread(data, task, metric, seeds)}")
        about = _about(folder, data, name)
        parameters = about[0].get("parameters")
        seconds = np.median([one["seconds"] for one in about])
        cells += ["" if parameters is None else f"{parameters:,}", f"{seconds:.0f}"]
        lines.append(_row(cells))
    return lines


def _value(everyone: Comparison, task: Task, metric: str, name: str, first: str) -> float:
    if name == first:
        return everyone.find(task.name, metric).first_value
    return everyone.find(task.name, metric, second=name).second_value


def _miscalibrated(
    data: DataSet, found: Mapping[str, object], everyone: Comparison, first: str
) -> list[str]:
    """Name the models that rank well and give wrong probabilities."""
    lines = []
    for task in data.schema.tasks:
        if task.kind != "binary":
            continue
        ranked = {name: _value(everyone, task, "auc", name, first) for name in found}
        ratios = {name: _value(everyone, task, "pcoc", name, first) for name in found}
        close = [name for name, auc in ranked.items() if auc > max(ranked.values()) - CLOSE]
        amiss = [f"{n} ({ratios[n]:.3f})" for n in close if abs(ratios[n] - 1) > AMISS]
        told = (
            f"miscalibrated, mean score / mean label: {', '.join(amiss)}" if amiss else "all fair"
        )
        lines.append(f"- {task.name}, models within {CLOSE} of the best AUC: {told}.")
    return lines


def _spread(data: DataSet, task: Task, metric: str, seeds: Sequence[pl.DataFrame]) -> str:
    """Return the deviation of the seeds, of the main metrics alone."""
    if len(seeds) < 2 or metric not in {"auc", "rmse"}:
        return ""
    named = {str(number): scores for number, scores in enumerate(seeds)}
    apart = compare(data.split("test"), named, schema=data.schema, metrics=[metric], replicates=2)
    values = [_value(apart, task, metric, name, "0") for name in named]
    return f" ({np.std(values, ddof=1):.4f})"


def _about(folder: Path, data: DataSet, name: str) -> list[dict[str, float]]:
    place = folder / data.name / name.replace(" ", "_")
    return [json.loads(one.read_text()) for one in sorted(place.glob("*.json"))]


def _line(one: str, other: str, found: Difference) -> str:
    interval = f"{found.low:+.4f} .. {found.high:+.4f}"
    return _row(
        [one, other, found.task, found.metric, f"{found.difference:+.4f}", interval, found.verdict]
    )


def _verdict(verdicts: Sequence[tuple[str, str, Difference]]) -> list[str]:
    lines = []
    for other in (ALONE, TREES, LINEAR, "PLE"):
        for name in (*NETWORKS, DEFAULTS, *TAUGHT):
            found = [one for first, second, one in verdicts if (first, second) == (name, other)]
            if not found:
                continue
            told = {word: [one.task for one in found if one.verdict == word] for word in _WORDS}
            parts = [f"{word} on {', '.join(tasks)}" for word, tasks in told.items() if tasks]
            lines.append(f"- {name} against {other}: {'; '.join(parts)}.")
    return lines


_WORDS = ("better", "worse", "no evidence", "undefined")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
