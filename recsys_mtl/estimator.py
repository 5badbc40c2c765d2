"""MultiTaskRanker: fit, predict, evaluate, save; by scikit-learn's rules."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from recsys_mtl.encoding import OBSERVED, Batch, Encoder, absent_notes, warm
from recsys_mtl.errors import EncodingError, ModelDirError, NotFittedError, SchemaError
from recsys_mtl.metrics import Report
from recsys_mtl.model_dir import (
    ModelDir,
    history_from,
    metrics_to_json,
    read_model_dir,
    report_from,
    write_model_dir,
)
from recsys_mtl.network import (
    Extractor,
    Heads,
    Interaction,
    MMoE,
    MultiTaskModel,
    NoInteraction,
    RowTensors,
    SequenceEncoder,
    Sharing,
    Towers,
)
from recsys_mtl.reading import scan
from recsys_mtl.schema import Schema
from recsys_mtl.serving import Scorer
from recsys_mtl.settings import Fit, Settings, build_network, check_settings, find_device
from recsys_mtl.training import (
    Adam,
    Balance,
    Checkpoints,
    Fixed,
    Optimizer,
    RowWiseAdagrad,
    Schedule,
    TowerOptimizer,
    Trained,
    Trainer,
    evaluate_rows,
    headline_score,
    monitor_parts,
    seeded,
)

_log = logging.getLogger(__name__)

_MMOE, _TOWERS, _PLAIN = MMoE(), Towers(), NoInteraction()
_ADAM, _ADAGRAD, _FIXED, _STEADY = Adam(), RowWiseAdagrad(), Fixed(), Schedule()
_SETTINGS = tuple(setting.name for setting in fields(Settings))


class MultiTaskRanker(BaseEstimator):  # type: ignore[misc] # scikit-learn is untyped
    """Predict several tasks of a ranking problem with one network.

    Parameters
    ----------
    schema
        What the columns mean.
    sharing
        How tasks share: `SharedBottom`, `OMoE`, `MMoE`, `CGC`, `PLE`, `CrossStitch`, `STEM`, `AdaTT`, `HoME`,
        `PEPNet`.
    heads
        How representations become predictions: `Towers`, `Serial`, `ESMM`, `ESCM2`, `AITM`, `DBMTL`.
    embedding_dim
        Width of the embedding tables of features that name none.
    sequences
        Encoders of `History` features: `Mean`, `GRU`, `DilatedCNN`, `DIN`, `CausalAttention`; one without
        `feature` is for all that have none of their own. By default the mean of the events.
    interaction
        How features meet before sharing: `NoInteraction`, `CrossNetwork`, `FM`.
    extractors
        Networks that replace `Vector` features: `ImageCNN`, `MLPExtractor`, or a subclass of `Extractor`.
    batch_size, max_epochs, optimizer, tower_optimizers, table_optimizer, balance, schedule, clip_norm, \
average, precision, monitor, patience, reset_tables, observe_every
        As in `recsys_mtl.training.TrainConfig`.
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
        One row per epoch of the run that was validated: losses, validation metrics, seconds, and what
        `looks` steps of the epoch showed of gates, experts and gradients, by columns that
        `recsys_mtl.training.observe.Observer.record` explains.
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
        sequences: Sequence[SequenceEncoder] = (),
        interaction: Interaction = _PLAIN,
        extractors: Sequence[Extractor] = (),
        batch_size: int = 2048,
        max_epochs: int = 10,
        optimizer: Optimizer = _ADAM,
        tower_optimizers: Sequence[TowerOptimizer] = (),
        table_optimizer: RowWiseAdagrad = _ADAGRAD,
        balance: Balance = _FIXED,
        schedule: Schedule = _STEADY,
        clip_norm: float | None = None,
        average: float | None = None,
        precision: str = "float32",
        monitor: str = "loss",
        patience: int = 2,
        reset_tables: bool = False,
        observe_every: int = 100,
        device: str = "auto",
        progress: bool | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.schema = schema
        self.sharing = sharing
        self.heads = heads
        self.embedding_dim = embedding_dim
        self.sequences = sequences
        self.interaction = interaction
        self.extractors = extractors
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.optimizer = optimizer
        self.tower_optimizers = tower_optimizers
        self.table_optimizer = table_optimizer
        self.balance = balance
        self.schedule = schedule
        self.clip_norm = clip_norm
        self.average = average
        self.precision = precision
        self.monitor = monitor
        self.patience = patience
        self.reset_tables = reset_tables
        self.observe_every = observe_every
        self.device = device
        self.progress = progress
        self.random_state = random_state

    def fit(
        self,
        rows: Any,
        y: None = None,
        *,
        valid: Any = None,
        refit: bool = False,
        checkpoints: Checkpoints | None = None,
    ) -> Self:
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
        checkpoints
            Where to keep the state of the run. Called again with the same tables and settings after a
            break, `fit` goes on from there, and the model is the same, bit for bit on one machine.

        Raises
        ------
        SchemaError, EncodingError
            If the settings or the tables contradict the schema. The ranker stays as it was.
        ModelDirError
            If a checkpoint is damaged or that of another run.
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
        if checkpoints is not None and settings.random_state is None:
            raise ValueError(
                "checkpoints need an integer random_state: a run of another seed is another."
            )
        check_settings(self.schema, settings)
        device = find_device(self.device)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        train_rows = scan(rows)
        valid_rows = None if valid is None else scan(valid)
        both = train_rows.concat(valid_rows) if refit and valid_rows is not None else None
        chosen = Fit(settings, device, seed, checkpoints, "fit")
        encoder, model, trained = self._train(chosen, train_rows, valid_rows)
        if both is not None:
            again = replace(settings, max_epochs=trained.best_epoch)
            chosen = Fit(again, device, seed, checkpoints, "refit")
            encoder, model, _ = self._train(chosen, both, None)
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
        metrics = metrics_to_json(self.best_epoch_, self.history_, report)
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

    def _train(self, chosen: Fit, rows: Any, valid: Any) -> tuple[Encoder, MultiTaskModel, Trained]:
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
        with seeded(chosen.seed, chosen.device):
            model = build_network(encoder, chosen.settings)
            model.learn_outputs(batch)
            model.to(chosen.device)
            trainer = Trainer(
                model, self.schema, chosen.settings, seed=chosen.seed, progress=self.progress
            )
            checkpoint = chosen.checkpoint(self.schema, batch, valid_batch)
            return encoder, model, trainer.fit(batch, valid_batch, checkpoint=checkpoint)


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
            model = build_network(encoder, settings)
        model.load_state_dict(dict(found.weights))
    except (SchemaError, KeyError, RuntimeError) as error:
        raise ModelDirError(
            f"{path} does not fit this version of the package: {error} If a kind is one of your own,"
            " import the module that defines it first (by command: --import MODULE)."
        ) from error
    given = {name: getattr(settings, name) for name in _SETTINGS}
    ranker = MultiTaskRanker(schema, device=device, **given)
    ranker.scorer_ = Scorer(schema, encoder, model.to(where))
    ranker.settings_ = settings
    ranker.best_epoch_ = int(found.metrics["best_epoch"])
    ranker.history_ = history_from(found.metrics["history"])
    ranker.valid_report_ = report_from(found.metrics)
    return ranker


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


def _labelled(scorer: Scorer, rows: Any) -> tuple[Batch, RowTensors]:
    batch = scorer.encoder.encode(rows)
    if batch.num_rows == 0:
        raise EncodingError("The interactions must hold rows to evaluate. Found an empty table.")
    return batch, RowTensors(batch, scorer.device)
