"""A fitted model in words, for a person who finds its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import polars as pl

from recsys_mtl.estimator import MultiTaskRanker
from recsys_mtl.network.ensemble import members_of
from recsys_mtl.schema import Binary, Feature, IdFeature, Task
from recsys_mtl.training import sizes_of


def describe_model(ranker: MultiTaskRanker) -> str:
    """Return what the model reads, predicts and consists of, in lines of text."""
    scorer, settings = ranker.scorer, ranker.settings_
    schema = scorer.schema
    layout = scorer.encoder.layout
    members = members_of(scorer.model)
    tables = sum(t.weight_RD.numel() for one in members for t in one.embeddings.each())
    dense = sum(p.numel() for p in scorer.model.parameters() if p.requires_grad)
    num_views = settings.sharing.num_views(len(schema.tasks))
    lines = ["reads"]
    for name, side in (("user", schema.user), ("item", schema.item)):
        if side is not None:
            lines.append(f"  {name} by {side.key}: {_features(side.features)}")
    if schema.context:
        lines.append(f"  context: {_features(schema.context)}")
    if scorer.as_of is not None:
        lines.append(f"  earlier rows: known up to time {scorer.as_of.end}")
    sizes = ", ".join(f"{size:,}" for size in sizes_of(settings.batch_size))
    lines += ["predicts", *(f"  {_task(task)}" for task in schema.tasks)]
    lines += [
        "network",
        f"  sharing: {settings.sharing}",
        f"  heads: {settings.heads}",
        *(f"  history: {encoder}" for encoder in settings.sequences),
        *(f"  extractor: {extractor}" for extractor in settings.extractors),
        f"  interaction: {settings.interaction}",
        "training",
        f"  balance: {settings.balance}",
        f"  optimizer: {settings.optimizer}, schedule: {settings.schedule}",
        *(f"  optimizer of {one.task}: {one.optimizer}" for one in settings.tower_optimizers),
        f"  tables: {settings.table_optimizer}",
        f"  batches of {sizes}, random state {settings.random_state}",
        "parameters",
        *([f"  members: {len(members)}, whose scores are averaged"] if len(members) > 1 else []),
        f"  parameters: {dense:,} dense, {tables:,} in {len(layout.tables)} embedding tables",
        "embedding tables",
        *(
            f"  {table.name}: {table.num_rows:,} rows x"
            f" {(table.dim or settings.embedding_dim) * num_views}"
            for table in layout.tables
        ),
    ]
    if ranker.valid_report_ is not None:
        lines.append(f"validation, epoch {ranker.best_epoch_}")
        lines += [f"  {line}" for line in str(ranker.valid_report_).splitlines()]
    return "\n".join(lines)


def describe_collisions(report: pl.DataFrame) -> str:
    """Lay out what `collision_report` returned: a line per table, shares in per cent."""
    shares = ("expected", "observed", "traffic", "unknown")
    lines = [["table", "distinct", "buckets", "rows", *shares, "map", "memory", "suggested"]]
    for row in report.iter_rows(named=True):
        names, size = row["features"], row["suggested"]
        lines.append(
            [
                row["table"] if names == [row["table"]] else f"{row['table']} ({', '.join(names)})",
                *(f"{row[name]:,}" for name in ("distinct", "buckets", "rows")),
                *(f"{row[name]:.2%}" for name in shares),
                *(_memory(row[name]) for name in ("map_bytes", "table_bytes")),
                "over 2**30" if size is None else f"{size:,}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        )
        for line in lines
    )


def _memory(num_bytes: int) -> str:
    power = min((max(num_bytes, 1).bit_length() - 1) // 10, 3)
    return f"{num_bytes / 1024**power:,.{min(power, 1)}f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def _features(features: Sequence[Feature]) -> str:
    return (
        ", ".join(f"{feature.name} ({feature.kind}{_detail(feature)})" for feature in features)
        or "nothing"
    )


def _detail(feature: Feature) -> str:
    if isinstance(feature, IdFeature) and feature.min_count > 1:
        return f", seen {feature.min_count} times or more"
    return ""


def _task(task: Task) -> str:
    space = "" if task.within is None else f", within {task.within}"
    joint = f", both as {task.joint}" if isinstance(task, Binary) and task.joint else ""
    common = {"name", "label", "weight", "within", "joint"}
    other = [
        f", {field.name} {getattr(task, field.name)!r}"
        for field in dataclasses.fields(task)
        if field.name not in common and getattr(task, field.name) not in (field.default, ())
    ]
    said = f"{space}{joint}{''.join(other)}"
    return f"{task.name} ({task.kind}) from {task.label}, weight {task.weight:g}{said}"
