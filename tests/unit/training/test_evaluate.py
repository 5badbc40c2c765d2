import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score

from recsys_mtl.encoding import MISSING, OBSERVED, Batch
from recsys_mtl.metrics import MetricWarning, gauc
from recsys_mtl.network import MultiTaskModel, RowTensors, predict_heads, score_rows
from recsys_mtl.schema import Schema, Side
from recsys_mtl.training import evaluate_rows, headline_score, task_losses
from recsys_mtl.training.evaluate import validation_losses

CPU = torch.device("cpu")
MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., MultiTaskModel]


def test_metrics_are_those_of_the_observed_rows(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    """Weights count only for a task that names a column of them: here none does."""
    batch, model = make_batch(80), make_model()
    rows = RowTensors(batch, CPU)
    assert batch.labels is not None
    assert batch.states is not None
    report = evaluate_rows(model, schema, batch, rows)
    ctr, rating, _ = (scores.numpy() for scores in score_rows(model, rows))
    seen = batch.states[:, 1] == OBSERVED
    assert 0 < seen.sum() < 80
    error = rating[seen].astype(float) - batch.labels[seen, 1]
    assert report.value("rating", "rmse") == pytest.approx(math.sqrt(np.mean(error**2)))
    assert report.value("ctr", "auc") == pytest.approx(roc_auc_score(batch.labels[:, 0], ctr))
    assert {one.rows for one in report.measurements if one.task == "rating"} == {seen.sum()}


def test_sample_weights_count_where_the_task_names_them(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    batch, model = make_batch(80), make_model()
    rows = RowTensors(batch, CPU)
    assert batch.labels is not None
    assert batch.weights is not None
    weighted = replace(
        schema, tasks=[replace(schema.tasks[0], sample_weight="w"), *schema.tasks[1:]]
    )
    report = evaluate_rows(model, weighted, batch, rows)
    scores = score_rows(model, rows)[0].numpy()
    expected = roc_auc_score(batch.labels[:, 0], scores, sample_weight=batch.weights[:, 0])
    assert report.value("ctr", "auc") == pytest.approx(expected)


def test_grouped_metrics_are_grouped_by_user_for_binary_tasks(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    batch, model = make_batch(80), make_model()
    rows = RowTensors(batch, CPU)
    users = pl.Series("user", np.arange(80) % 7)
    grouped = replace(batch, keys=pl.DataFrame([users]), absent={"user": 2, "item": 0})
    report = evaluate_rows(model, replace(schema, user=Side("user")), grouped, rows)
    assert batch.labels is not None
    expected = gauc(batch.labels[:, 0], score_rows(model, rows)[0].numpy(), users)
    assert report.value("ctr", "gauc") == pytest.approx(expected.value)
    assert [one.task for one in report.measurements if one.metric == "gauc"] == ["ctr"]
    assert [note for note in report.notes if "table lacks" in note] == [
        "2 rows have a user that the users table lacks: its features count as null"
    ]


def test_validation_losses_are_the_training_losses_of_all_rows(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    model, rows = make_model(dropout=0.5).train(), RowTensors(make_batch(60), CPU)
    found = validation_losses(model, schema, rows, predict_heads(model, rows))
    everything = torch.arange(60)
    headed = model.eval()(rows.take(everything)).headed
    expected = task_losses(
        headed,
        rows.targets(everything),
        schema.tasks,
        model.outputs.mean_T,
        model.outputs.std_T,
        model.heads,
    ).means_T
    torch.testing.assert_close(found, expected)


def test_the_headline_is_the_mean_of_auc_r_squared_and_accuracy(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    batch, model = make_batch(80), make_model()
    rows = RowTensors(batch, CPU)
    assert batch.labels is not None
    assert batch.states is not None
    assert batch.weights is not None
    ctr, rating, genre = (scores.numpy() for scores in score_rows(model, rows))
    seen, weights = batch.states[:, 1] == OBSERVED, batch.weights
    parts = [
        roc_auc_score(batch.labels[:, 0], ctr, sample_weight=weights[:, 0]),
        r2_score(batch.labels[seen, 1], rating[seen], sample_weight=weights[seen, 1]),
        accuracy_score(batch.labels[:, 2], genre.argmax(axis=1), sample_weight=weights[:, 2]),
    ]
    assert headline_score(model, schema, batch, rows) == pytest.approx(np.mean(parts), rel=1e-5)


def test_tasks_without_a_headline_are_left_out_until_none_is_left(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    batch, model = make_batch(20), make_model()
    rows = RowTensors(batch, CPU)
    assert batch.states is not None
    whole = headline_score(model, schema, batch, rows)
    batch.states[:, [0, 1]] = MISSING
    with pytest.warns(MetricWarning):
        assert headline_score(model, schema, batch, rows) != whole
    batch.states[:] = MISSING
    with pytest.warns(MetricWarning), pytest.raises(ValueError, match="No task can be scored"):
        headline_score(model, schema, batch, rows)


def test_evaluation_needs_labels(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    batch = replace(make_batch(5), labels=None)
    rows = RowTensors(batch, CPU)
    for evaluate in (evaluate_rows, headline_score):
        with pytest.raises(ValueError, match="labels"):
            evaluate(make_model(), schema, batch, rows)


def test_rows_without_a_user_are_dropped_from_grouped_metrics_and_counted(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    batch, model = make_batch(80), make_model()
    rows = RowTensors(batch, CPU)
    assert batch.labels is not None
    users = [None if row % 4 == 0 else f"user {row % 5}" for row in range(80)]
    batch = replace(batch, keys=pl.DataFrame({"user": users}))
    sided = replace(schema, user=Side("user", features=schema.context), context=())
    report = evaluate_rows(model, sided, batch, rows)
    kept = np.array([user is not None for user in users])
    scores = score_rows(model, rows)[0].numpy()
    named = [user for user in users if user is not None]
    expected = gauc(batch.labels[kept, 0], scores[kept], named)
    assert report.value("ctr", "gauc") == pytest.approx(expected.value)
    assert any("25 groups" in note and "20 dropped" in note for note in report.notes)
