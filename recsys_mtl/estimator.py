"""MultiTaskRanker: fit, predict, evaluate, save; by scikit-learn's rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from recsys_mtl.errors import NotFittedError, SchemaError
from recsys_mtl.fitting import CachePlace, Fit, Fitted, StatePlace
from recsys_mtl.measuring import evaluate_scorer, headline_of
from recsys_mtl.metrics import Report
from recsys_mtl.model_dir import (
    ModelDir,
    Training,
    metrics_to_json,
    write_model_dir,
)
from recsys_mtl.network import (
    Extractor,
    Heads,
    Interaction,
    MMoE,
    NoInteraction,
    SequenceEncoder,
    Sharing,
    Towers,
)
from recsys_mtl.reading import scan
from recsys_mtl.recall import observed, to_bytes
from recsys_mtl.schema import Schema
from recsys_mtl.serving import Scorer
from recsys_mtl.settings import (
    Settings,
    check_alone,
    check_settings,
    check_without_valid,
    find_device,
    refuse_labels,
)
from recsys_mtl.training import (
    Adam,
    Balance,
    Fixed,
    Optimizer,
    RowWiseAdagrad,
    Schedule,
    TowerOptimizer,
    Trained,
    monitor_parts,
    refuse_processes,
)
from recsys_mtl.warm import Renamed, WarmStart

_MMOE, _TOWERS, _PLAIN = MMoE(), Towers(), NoInteraction()
_NOT_FITTED = "The ranker must be fitted or loaded first: call fit or load."
_ADAM, _ADAGRAD, _FIXED, _STEADY = Adam(), RowWiseAdagrad(), Fixed(), Schedule()
_SETTINGS = tuple(setting.name for setting in fields(Settings))


class MultiTaskRanker(BaseEstimator):  # type: ignore[misc] # scikit-learn is untyped
    """Predict several tasks of a ranking problem with one network.

    Parameters
    ----------
    schema
        What the columns mean.
    sharing
        One of `SharedBottom`, `OMoE`, `MMoE`, `CGC`, `PLE`, `CrossStitch`, `STEM`, `AdaTT`, `HoME`, `PEPNet`.
    heads
        How representations become predictions: `Towers`, `Serial`, `ESMM`, `ESCM2`, `AITM`, `DBMTL`.
    embedding_dim, embedding_dropout
        Width of the vectors of features that name none; share of vectors' numbers dropped in training.
    sequences
        Encoders of `History` features: `Mean`, `GRU`, `DilatedCNN`, `DIN`, `CausalAttention`; one without
        `feature` is for all that have none of their own. By default the mean of the events.
    interaction
        How features meet before sharing: `NoInteraction`, `CrossNetwork`, `FM`.
    extractors
        Networks that replace `Vector` features: `ImageCNN`, `MLPExtractor`, or a subclass of `Extractor`.
    num_members
        Networks trained one after another from seeds of their own; scores are the mean of theirs, and a
        joint score is the product of mean probabilities. The history's `member` tells whose epoch it is;
        `best_epoch_` is the first's. Not with `warm_start`, `checkpoints`, `partial_fit` or torchrun.
    batch_size, accumulate, max_epochs, optimizer, tower_optimizers, table_optimizer, balance, schedule, \
clip_norm, average, precision, compile, monitor, patience, reset_tables, observe_every
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
    warm_start_notes_ : list of str
        What a warm start, or `partial_fit`, found changed: features, tasks, tables that grew.

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
        embedding_dropout: float = 0.0,
        sequences: Sequence[SequenceEncoder] = (),
        interaction: Interaction = _PLAIN,
        extractors: Sequence[Extractor] = (),
        num_members: int = 1,
        batch_size: int | Sequence[int] = 2048,
        accumulate: int = 1,
        max_epochs: int = 10,
        optimizer: Optimizer = _ADAM,
        tower_optimizers: Sequence[TowerOptimizer] = (),
        table_optimizer: RowWiseAdagrad = _ADAGRAD,
        balance: Balance = _FIXED,
        schedule: Schedule = _STEADY,
        clip_norm: float | None = None,
        average: float | None = 0.98,
        precision: str = "float32",
        compile: bool = False,  # torch's word for it
        monitor: str = "loss",
        patience: int = 2,
        reset_tables: bool | None = None,
        observe_every: int = 100,
        device: str = "auto",
        progress: bool | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.schema = schema
        self.sharing = sharing
        self.heads = heads
        self.embedding_dim = embedding_dim
        self.embedding_dropout = embedding_dropout
        self.sequences = sequences
        self.interaction = interaction
        self.extractors = extractors
        self.num_members = num_members
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.max_epochs = max_epochs
        self.optimizer = optimizer
        self.tower_optimizers = tower_optimizers
        self.table_optimizer = table_optimizer
        self.balance = balance
        self.schedule = schedule
        self.clip_norm = clip_norm
        self.average = average
        self.precision = precision
        self.compile = compile
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
        checkpoints: StatePlace | None = None,
        cache: CachePlace | None = None,
        warm_start: MultiTaskRanker | Renamed | str | Path | None = None,
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
            Where to keep the state of the run: `Checkpoints`, or a folder. Called again with the same
            tables and settings after a break, `fit` goes on from there, and the model is the same,
            bit for bit on one machine.
        cache
            Where to keep encoded rows, for parquet files larger than memory: `DiskCache`, or a folder.
        warm_start
            A fitted ranker, or a model folder, to go on from: with its weights and the state of its
            optimizers. Tables grow by new ids; features and tasks may come and go. One that reads
            another column is refused; `Renamed` says which columns have new names.

        Raises
        ------
        SchemaError, EncodingError
            If the settings or the tables contradict the schema. The ranker stays as it was.
        ModelDirError
            If a checkpoint is damaged or that of another run.
        """
        refuse_labels(y)
        settings = self._settings()
        if valid is None:
            check_without_valid(settings, refit=refit)
        chosen = self._chosen(settings, None if warm_start is None else _start(warm_start))
        chosen = chosen.keeping(checkpoints, cache)
        train_rows = scan(rows)
        valid_rows = None if valid is None else scan(valid)
        both = train_rows.concat(valid_rows) if refit and valid_rows is not None else None
        fitted = chosen.run(self.schema, train_rows, valid_rows)
        trained = fitted.trained
        if both is not None:
            again = replace(settings, max_epochs=trained.best_epoch)
            again_chosen = replace(chosen, settings=again, name="refit", epochs=fitted.epochs)
            fitted = again_chosen.run(self.schema, both, None)
        return self._take(settings, fitted, trained)

    def partial_fit(self, rows: Any, y: None = None, *, cache: CachePlace | None = None) -> Self:
        """Go on training with one pass over new rows, such as those of a day.

        The first call on a ranker that is not fitted trains from the start. Later ones go on with its
        weights and optimizers as if there had been no break, and give new ids rows of their own. A
        schedule's warm-up is part of the first call; after it rates are constant. `monitor`,
        `patience` and `max_epochs` have no meaning here.

        Parameters
        ----------
        rows, y, cache
            As in `fit`.

        Raises
        ------
        SchemaError, EncodingError
            As in `fit`, and in several processes; the ranker stays as it was.
        """
        refuse_labels(y)
        settings = self._settings()
        check_alone(settings, "partial_fit")
        refuse_processes("partial_fit", find_device(self.device))
        start = _start(self, resume=True) if hasattr(self, "settings_") else None
        schedule = replace(settings.schedule, decay="none") if start is None else _STEADY
        once = replace(settings, max_epochs=1, monitor="loss", schedule=schedule)
        fitted = self._chosen(once, start).keeping(None, cache).run(self.schema, scan(rows), None)
        return self._take(settings, fitted, fitted.trained)

    def predict(self, rows: Any) -> Any:
        """Score rows: the id columns as they came, and one column per task.

        The result is a table of the input's kind (polars, pandas, Arrow; parquet paths give polars)
        with the input's rows in their order.
        """
        return self.scorer.score(rows)

    def evaluate(
        self,
        rows: Any,
        *,
        by: str | None = None,
        intervals: bool | int = False,
        top: int | None = None,
    ) -> Report:
        """Measure every task on the rows where its label is observed.

        Parameters
        ----------
        rows
            As in `fit`.
        by
            A column of the interactions: measure the rows of each of its values too.
        intervals
            Whether to give each value a 95 % interval by drawing users again, 1,000 times or this often.
        top
            Measure each user's ranked list too: NDCG and recall of its first `top`, and MRR.
        """
        return evaluate_scorer(self.scorer, rows, by=by, intervals=intervals, top=top)

    def score(self, rows: Any, y: None = None) -> float:
        """Return one number, the higher the better.

        It is the mean over tasks of AUC (binary), accuracy (multiclass) and R squared (regression);
        tasks for which that is undefined on these rows are left out with a warning.
        """
        del y
        return headline_of(self.scorer, rows)

    def observe(self, rows: Any) -> Self:
        """Let features of earlier rows know a day's rows, as `AsOfState.update` does; train nothing."""
        self.scorer.as_of = observed(self.scorer.as_of, rows)
        return self

    def save(self, path: str | Path, *, training: bool = True) -> None:
        """Write the model to a folder: JSON and safetensors, hashed, replaced as a whole.

        Parameters
        ----------
        path
            The folder.
        training
            Whether to keep the state of the optimizers in it, for warm starts. Scoring never reads it.
        """
        scorer = self.scorer
        encoder, arrays = scorer.encoder.state()
        metrics = metrics_to_json(self.best_epoch_, self.history_, self.valid_report_)
        schema, settings = scorer.schema.to_dict(), self.settings_.to_dict()
        weights, known = scorer.model.state_dict(), to_bytes(scorer.as_of)
        kept = self.training_ if training else None
        contents = ModelDir(schema, settings, encoder, metrics, arrays, weights, kept, known)
        write_model_dir(path, contents)

    @property
    def scorer(self) -> Scorer:
        """The fitted scorer, for services that need nothing else."""
        fitted: Scorer | None = getattr(self, "scorer_", None)
        if fitted is None:
            first = (
                "The first of several processes has the model: save it there, and load the folder."
            )
            raise NotFittedError(first if hasattr(self, "settings_") else _NOT_FITTED)
        return fitted

    def _chosen(self, settings: Settings, start: WarmStart | None) -> Fit:
        """Check the settings and return the run they describe."""
        check_settings(self.schema, settings)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        return Fit(settings, find_device(self.device), seed, progress=self.progress, start=start)

    def _take(self, settings: Settings, fitted: Fitted, trained: Trained) -> Self:
        """Become the fitted ranker."""
        self.__dict__.pop("scorer_", None)
        if fitted.model is not None:  # the first of several processes has it
            self.scorer_ = Scorer(self.schema, fitted.encoder, fitted.model, fitted.as_of)
        self.settings_, self.warm_start_notes_ = settings, fitted.notes
        self.training_: Training | None = fitted.training
        self.history_, self.best_epoch_ = trained.history, trained.best_epoch
        self.valid_report_ = trained.report
        return self

    def _settings(self) -> Settings:
        if not isinstance(self.schema, Schema):
            raise SchemaError(f"schema must be a Schema. Found {self.schema!r}.")
        seed = self.random_state
        given = {name: getattr(self, name) for name in _SETTINGS if name != "random_state"}
        settings = Settings(**given, random_state=int(seed) if isinstance(seed, Integral) else None)
        monitor_parts(settings.monitor, self.schema)
        return settings


def _start(known: MultiTaskRanker | Renamed | str | Path, *, resume: bool = False) -> WarmStart:
    """Return what a run goes on from; `resume` if it is one with the run that made it."""
    if isinstance(known, Renamed):
        return _start(known.model).reading(known.columns)
    if not isinstance(known, MultiTaskRanker):
        return WarmStart.of_folder(known)
    scorer, settings, training = known.scorer, known.settings_, known.training_
    return WarmStart(scorer.encoder, scorer.model, settings, training, resume, scorer.as_of)
