"""MultiTaskRanker: fit, predict, evaluate, save; by scikit-learn's rules."""

from __future__ import annotations

import logging
from dataclasses import KW_ONLY, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import polars as pl
import torch
from pydantic import Field
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from recsys_mtl.encoding import OBSERVED, Batch, Encoder, absent_notes, warm
from recsys_mtl.errors import EncodingError, ModelDirError, NotFittedError, SchemaError
from recsys_mtl.metrics import Measurement, Report
from recsys_mtl.model_dir import ModelDir, read_model_dir, write_model_dir
from recsys_mtl.network import Heads, MMoE, MultiTaskModel, RowTensors, Sharing, Towers
from recsys_mtl.reading import scan
from recsys_mtl.schema import Schema
from recsys_mtl.serving import Scorer
from recsys_mtl.spec import spec
from recsys_mtl.training import (
    Adam,
    Optimizer,
    RowWiseAdagrad,
    TrainConfig,
    Trained,
    Trainer,
    evaluate_rows,
    headline_score,
    monitor_parts,
    seeded,
)

_log = logging.getLogger(__name__)

_MMOE, _TOWERS, _ADAM, _ADAGRAD = MMoE(), Towers(), Adam(), RowWiseAdagrad()


@spec
class Settings(TrainConfig):
    """All that a model was fitted with beside the schema: the arguments of `MultiTaskRanker`."""

    _: KW_ONLY
    sharing: Sharing = _MMOE
    heads: Heads = _TOWERS
    embedding_dim: Annotated[int, Field(ge=1)] = 16
    random_state: int | None = None


_SETTINGS = tuple(setting.name for setting in fields(Settings))


class MultiTaskRanker(BaseEstimator):  # type: ignore[misc] # scikit-learn is untyped
    """Predict several tasks of a ranking problem with one network.

    Parameters
    ----------
    schema
        What the columns mean.
    sharing
        How tasks share: `SharedBottom`, `MMoE`, `PLE`.
    heads
        How representations become predictions: `Towers`.
    embedding_dim
        Width of the embedding tables of features that name none.
    batch_size, max_epochs, optimizer, table_optimizer, monitor, patience, reset_tables
        As in `TrainConfig`.
    device
        ``"cpu"``, ``"cuda"``, ``"cuda:1"`` ...; ``"auto"`` takes a GPU where there is one.
    progress
        Whether to show progress bars; None: only on a terminal.
    random_state
        Seed of weights, dropout and row order. The same seed on the same machine gives the same
        model, and leaves the caller's random state alone. As everywhere in scikit-learn, None draws
        the seed from NumPy's global state and a `RandomState` is drawn from.

    Attributes
    ----------
    history_ : polars.DataFrame
        One row per epoch of the run that was validated.
    best_epoch_ : int
        The epoch whose weights were kept, or that chose the length of the refit.
    valid_report_ : Report or None
        Validation metrics of that epoch.
    settings_ : Settings
        What the model was fitted with, whatever parameters were set since.

    Examples
    --------
    >>> import polars as pl
    >>> from recsys_mtl import Binary, Categorical, MultiTaskRanker, Schema, SharedBottom
    >>> table = pl.DataFrame({"hour": [7, 8] * 50, "click": [1, 0] * 50})
    >>> schema = Schema(context=[Categorical("hour")], tasks=[Binary("ctr", label="click")])
    >>> ranker = MultiTaskRanker(schema, sharing=SharedBottom(dims=(8,)), random_state=0)
    >>> ranker.fit(table).evaluate(table).value("ctr", "auc")
    1.0
    """

    def __init__(
        self,
        schema: Schema,
        *,
        sharing: Sharing = _MMOE,
        heads: Heads = _TOWERS,
        embedding_dim: int = 16,
        batch_size: int = 2048,
        max_epochs: int = 10,
        optimizer: Optimizer = _ADAM,
        table_optimizer: RowWiseAdagrad = _ADAGRAD,
        monitor: str = "loss",
        patience: int = 2,
        reset_tables: bool = False,
        device: str = "auto",
        progress: bool | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.schema = schema
        self.sharing = sharing
        self.heads = heads
        self.embedding_dim = embedding_dim
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.optimizer = optimizer
        self.table_optimizer = table_optimizer
        self.monitor = monitor
        self.patience = patience
        self.reset_tables = reset_tables
        self.device = device
        self.progress = progress
        self.random_state = random_state

    def fit(self, rows: Any, y: None = None, *, valid: Any = None, refit: bool = False) -> Self:
        """Train on rows whose labels are columns of the table.

        Parameters
        ----------
        rows
            `Rows`, or any table or path that `scan` takes.
        y
            Must be None: labels are columns of the table. It stands here by scikit-learn's convention.
        valid
            Rows that choose the number of epochs. Without them all `max_epochs` are trained.
        refit
            Once `valid` has chosen the number of epochs, train a new model that long on `rows` and
            `valid` together: the latest rows are worth more than any architecture.

        Raises
        ------
        SchemaError, EncodingError
            If the settings or the tables contradict the schema. The ranker stays as it was.
        """
        if y is not None:
            raise TypeError(
                "y must be None: labels are columns of the table. Validation rows go by name:"
                " fit(train, valid=valid)."
            )
        settings = self._settings()
        if valid is None and settings.monitor != "loss":
            raise ValueError(f"monitor={settings.monitor!r} needs valid rows. Found none.")
        if refit and valid is None:
            raise ValueError("refit=True needs valid rows: they choose the number of epochs.")
        device = find_device(self.device)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        train_rows = scan(rows)
        valid_rows = None if valid is None else scan(valid)
        both = train_rows.concat(valid_rows) if refit and valid_rows is not None else None
        encoder, model, trained = self._train(settings, device, seed, train_rows, valid_rows)
        if both is not None:
            chosen = replace(settings, max_epochs=trained.best_epoch)
            encoder, model, _ = self._train(chosen, device, seed, both, None)
        self.scorer_ = Scorer(self.schema, encoder, model)
        self.settings_ = settings
        self.history_, self.best_epoch_ = trained.history, trained.best_epoch
        self.valid_report_ = trained.report
        return self

    def predict(self, rows: Any) -> Any:
        """Score rows: the id columns as they came, and one column per task.

        The result is a table of the input's kind (polars, pandas, Arrow; parquet paths give polars)
        with the input's rows in their order.
        """
        return self.scorer.score(rows)

    def evaluate(self, rows: Any) -> Report:
        """Measure every task on the rows where its label is observed."""
        scorer = self.scorer
        batch, tensors = _labelled(scorer, rows)
        return evaluate_rows(scorer.model, scorer.schema, batch, tensors)

    def score(self, rows: Any, y: None = None) -> float:
        """Return one number, the higher the better.

        It is the mean over tasks of AUC (binary), accuracy (multiclass) and R squared (regression);
        tasks for which that is undefined on these rows are left out with a warning.
        """
        del y
        scorer = self.scorer
        batch, tensors = _labelled(scorer, rows)
        return headline_score(scorer.model, scorer.schema, batch, tensors)

    def save(self, path: str | Path) -> None:
        """Write the model to a folder: JSON and safetensors, hashed, replaced as a whole."""
        scorer = self.scorer
        encoder, arrays = scorer.encoder.state()
        report = self.valid_report_
        metrics = {
            "best_epoch": self.best_epoch_,
            "history": _finite(self.history_.to_dicts()),
            "validation": None if report is None else _finite(report.to_frame().to_dicts()),
            "notes": [] if report is None else list(report.notes),
        }
        write_model_dir(
            path,
            ModelDir(
                schema=scorer.schema.to_dict(),
                model=self.settings_.to_dict(),
                encoder=encoder,
                metrics=metrics,
                encoder_arrays=arrays,
                weights=scorer.model.state_dict(),
            ),
        )

    @property
    def scorer(self) -> Scorer:
        """The fitted scorer, for services that need nothing else."""
        fitted: Scorer | None = getattr(self, "scorer_", None)
        if fitted is None:
            raise NotFittedError("The ranker must be fitted or loaded first: call fit or load.")
        return fitted

    def _settings(self) -> Settings:
        if not isinstance(self.schema, Schema):
            raise SchemaError(f"schema must be a Schema. Found {self.schema!r}.")
        seed = self.random_state
        given = {name: getattr(self, name) for name in _SETTINGS if name != "random_state"}
        settings = Settings(**given, random_state=int(seed) if isinstance(seed, Integral) else None)
        monitor_parts(settings.monitor, self.schema)
        return settings

    def _train(
        self, settings: Settings, device: torch.device, seed: int, rows: Any, valid: Any
    ) -> tuple[Encoder, MultiTaskModel, Trained]:
        encoder = Encoder(self.schema)
        batch = encoder.fit_encode(rows)
        valid_batch = None if valid is None else encoder.encode(valid)
        if valid_batch is not None and valid_batch.num_rows == 0:
            raise EncodingError("valid must hold rows. Found an empty table.")
        _check_observed(batch, self.schema)
        if valid_batch is not None and not np.any(valid_batch.states == OBSERVED):
            raise EncodingError("valid must hold rows with observed labels. Found none.")
        for note in absent_notes(batch.absent):
            _log.warning("%s", note)
        with seeded(seed, device):
            model = _network(encoder, settings)
            model.learn_outputs(batch)
            model.to(device)
            trainer = Trainer(model, self.schema, settings, seed=seed, progress=self.progress)
            return encoder, model, trainer.fit(batch, valid_batch)


def load(path: str | Path, *, device: str = "auto") -> MultiTaskRanker:
    """Load a model folder that `MultiTaskRanker.save` wrote; no code in it is run.

    The kernels that encode rows are made ready here, so that the first request does not wait for them.

    Parameters
    ----------
    path
        The folder.
    device
        Where the model is to lie; any, whatever it was trained on.

    Raises
    ------
    ModelDirError
        If the folder is damaged, incomplete, changed or of an unknown format.
    """
    where = find_device(device)
    found = read_model_dir(path)
    warm()
    try:
        schema = Schema.from_dict(found.schema, path="schema")
        settings = Settings.from_dict(found.model, path="model")
        encoder = Encoder.from_state(schema, found.encoder, found.encoder_arrays)
        with seeded(0, torch.device("cpu")):  # what is drawn here is overwritten
            model = _network(encoder, settings)
        model.load_state_dict(dict(found.weights))
    except (SchemaError, KeyError, RuntimeError) as error:
        raise ModelDirError(f"{path} does not fit this version of the package: {error}") from error
    given = {name: getattr(settings, name) for name in _SETTINGS}
    ranker = MultiTaskRanker(schema, device=device, **given)
    ranker.scorer_ = Scorer(schema, encoder, model.to(where))
    ranker.settings_ = settings
    ranker.best_epoch_ = int(found.metrics["best_epoch"])
    ranker.history_ = _history(found.metrics["history"])
    ranker.valid_report_ = _report(found.metrics)
    return ranker


def find_device(name: Literal["auto"] | str) -> torch.device:
    """Return the device of that name; ``"auto"`` is a GPU where there is one.

    Raises
    ------
    SchemaError
        If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise SchemaError(
            f"device must be 'auto' or a device of this machine. Found {name!r}: {error}"
        ) from error
    return device


def _check_observed(batch: Batch, schema: Schema) -> None:
    """Refuse a task that training rows say nothing about, unless its weight is 0."""
    if batch.states is None or batch.weights is None:
        raise ValueError("Training needs rows encoded with labels.")
    known = ((batch.states == OBSERVED) & (batch.weights > 0)).any(axis=0)
    for task, found in zip(schema.tasks, known, strict=True):
        if task.weight > 0 and not found:
            raise EncodingError(
                f"Task {task.name!r} needs rows to train on where its label {task.label!r} is"
                " observed. Found none: remove the task or set its weight to 0."
            )


def _network(encoder: Encoder, settings: Settings) -> MultiTaskModel:
    return MultiTaskModel(
        encoder.layout,
        encoder.schema.tasks,
        sharing=settings.sharing,
        heads=settings.heads,
        embedding_dim=settings.embedding_dim,
    )


def _labelled(scorer: Scorer, rows: Any) -> tuple[Batch, RowTensors]:
    batch = scorer.encoder.encode(rows)
    if batch.num_rows == 0:
        raise EncodingError("The interactions must hold rows to evaluate. Found an empty table.")
    return batch, RowTensors(batch, scorer.device)


def _history(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rebuild the table of epochs; metrics that were undefined are NaN again."""
    frame = pl.DataFrame(rows, infer_schema_length=None)
    return frame.with_columns(
        pl.col(name).cast(pl.Float64).fill_null(float("nan"))
        for name in frame.columns
        if frame[name].null_count()
    )


def _report(metrics: dict[str, Any]) -> Report | None:
    if metrics["validation"] is None:
        return None
    measured = [
        Measurement(**{**row, "value": float("nan") if row["value"] is None else row["value"]})
        for row in metrics["validation"]
    ]
    return Report(tuple(measured), tuple(metrics["notes"]))


def _finite(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace NaN by null: JSON has no NaN."""
    return [
        {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}
        for row in rows
    ]
