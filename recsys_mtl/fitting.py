"""One training run of a fit: encode the tables, build the network, train it."""

from __future__ import annotations

import logging
import time
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import polars as pl
import torch
from pydantic import Field

from recsys_mtl.encoding import Batch, EncodedCache, Encoder, absent_notes
from recsys_mtl.errors import SchemaError
from recsys_mtl.model_dir import Training, TrainingTensors
from recsys_mtl.network import MultiTaskModel, RowTensors
from recsys_mtl.network.ensemble import EnsembleModel
from recsys_mtl.reading import AsOfState, Rows
from recsys_mtl.recall import recall
from recsys_mtl.schema import Schema
from recsys_mtl.settings import Settings, build_network, check_alone, check_rows
from recsys_mtl.spec import Spec, spec
from recsys_mtl.together import Together
from recsys_mtl.training import (
    CheckpointFile,
    CheckpointPart,
    Checkpoints,
    Processes,
    Trained,
    Trainer,
    check_alike,
    evaluate_rows,
    rows_identity,
    seeded,
    sizes_of,
    start_processes,
)
from recsys_mtl.training.windows import least_memory
from recsys_mtl.warm import WarmStart, keep_training

_log = logging.getLogger(__name__)
_MIB = 1 << 20


@spec
class DiskCache(Spec):
    """Train from encoded rows on disk, for tables larger than memory.

    The tables, parquet files, are encoded once, chunk by chunk, into a folder (`EncodedCache`); later
    runs on the same files find them there. Each epoch reads them in shuffled blocks, and shuffles
    rows among the blocks that are in memory together.

    Parameters
    ----------
    folder
        Where encoded rows are kept. Nothing in it is ever deleted; delete it whole.
    memory_mib
        MiB of encoded rows in memory at a time: half of it is trained on while the other is read.
        Users' and items' tables come on top, and are held whole.
    """

    folder: str
    _: KW_ONLY
    memory_mib: Annotated[int, Field(ge=1)] = 1024


Place = TypeVar("Place", Checkpoints, DiskCache)
StatePlace = Checkpoints | str | Path
CachePlace = DiskCache | str | Path


@dataclass(frozen=True)
class Fitted:
    """What a run gives.

    Parameters
    ----------
    encoder, model
        The model; None in all but the first of several processes.
    trained
        How the run went.
    training
        What a later run needs to go on, beside the weights; None where there is no model.
    notes
        What a warm start found changed, in words.
    as_of
        What is known of earlier rows, if the schema has features of them.
    epochs
        The best epoch of each member.
    """

    encoder: Encoder
    model: MultiTaskModel | None
    trained: Trained
    training: Training | None
    notes: list[str]
    as_of: AsOfState | None = None
    epochs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Fit:
    """One training run: its settings, where it runs, and where its state and rows are kept.

    Parameters
    ----------
    settings
        What is trained, and how.
    device
        Where.
    seed
        Of weights, dropout and row order.
    name
        Of its checkpoint.
    checkpoints
        Where its state is kept, if at all.
    cache
        Where its encoded rows are kept; None: in memory.
    progress
        Whether to show progress bars; None: only on a terminal.
    start
        The model that the run goes on from, if any.
    epochs
        How many epochs each member is trained; empty: as the settings say.
    """

    settings: Settings
    device: torch.device
    seed: int
    name: str = "fit"
    checkpoints: Checkpoints | None = None
    cache: DiskCache | None = None
    progress: bool | None = None
    start: WarmStart | None = None
    epochs: tuple[int, ...] = ()

    def keeping(self, checkpoints: StatePlace | None, cache: CachePlace | None) -> Fit:
        """Return the run with places for its state and its encoded rows.

        Parameters
        ----------
        checkpoints, cache
            As they are, or a folder, with all else as it is by default; None: no such place.

        Raises
        ------
        SchemaError
            If one is something else, or the seed of a run with checkpoints would not be known again.
        """
        if checkpoints is not None and self.settings.random_state is None:
            raise SchemaError(
                "checkpoints need an integer random_state: a run of another seed is another. Found None:"
                " set it, in a file under [run]."
            )
        return replace(
            self,
            checkpoints=_placed("checkpoints", Checkpoints, checkpoints),
            cache=_placed("cache", DiskCache, cache),
        )

    def run(self, schema: Schema, rows: Rows, valid: Rows | None) -> Fitted:
        """Encode, build and train.

        Raises
        ------
        EncodingError
            If there are no rows, or none with labels, or they contradict the schema.
        SchemaError
            If features of earlier rows are asked for together with what they do not go with, or several
            processes with a run that one began, or were given different things.
        """
        processes = start_processes(self.device)
        self._check_computed(schema, processes)
        self._check_members(processes)
        if processes is not None:
            return self._run_together(processes, schema, rows, valid)
        started = time.perf_counter()
        start = self.start
        known, resume = (None, False) if start is None else (start.as_of, start.resume)
        recalled = recall(schema, rows, valid, known=known, resume=resume)
        rows, valid = recalled.rows, recalled.valid
        encoder = Encoder(schema)
        batch, valid_batch = self._encode(encoder, rows, valid)
        check_rows(schema, batch, valid_batch)
        memory_bytes = self._memory_bytes(batch)
        for note in absent_notes(batch.absent):
            _log.warning("%s", note)
        encode_seconds = time.perf_counter() - started
        if self.settings.num_members > 1:
            found = self._train_members(encoder, batch, valid_batch, memory_bytes)
            trained = _with_encoding(found.trained, encode_seconds)
            return replace(found, trained=trained, notes=recalled.notes, as_of=recalled.state)
        with seeded(self.seed, self.device):
            model = build_network(encoder, self.settings)
            model.learn_outputs(batch)
            batch.release()
            warm = None if self.start is None else self.start.plant(encoder, model, self.settings)
            model.to(self.device)
            trainer = Trainer(model, schema, self.settings, seed=self.seed, progress=self.progress)
            if warm is not None:
                warm.hand_over(trainer.stepper)
            trained = trainer.fit(
                batch,
                valid_batch,
                checkpoint=self._checkpoint(schema, batch, valid_batch),
                memory_bytes=memory_bytes,
            )
            training = TrainingTensors(keep_training(trainer.stepper, trained))
        trained = _with_encoding(trained, encode_seconds)
        notes = recalled.notes + ([] if warm is None else warm.notes)
        return Fitted(encoder, model, trained, training, notes, recalled.state)

    def _train_members(
        self, encoder: Encoder, batch: Batch, valid: Batch | None, memory_bytes: int | None
    ) -> Fitted:
        """Train networks of other seeds on the same rows, one after another; the first is `seed`'s."""
        members, histories, epochs = [], [], []
        for number in range(self.settings.num_members):
            seed, settings = _member_seed(self.seed, number), self.settings
            if self.epochs:
                settings = replace(settings, max_epochs=self.epochs[number])
            with seeded(seed, self.device):
                model = build_network(encoder, settings)
                model.learn_outputs(batch)
                batch.release()
                model.to(self.device)
                trainer = Trainer(
                    model, encoder.schema, settings, seed=seed, progress=self.progress
                )
                trained = trainer.fit(batch, valid, memory_bytes=memory_bytes)
            members.append(model)
            histories.append(trained.history.with_columns(pl.lit(number).alias("member")))
            epochs.append(trained.best_epoch)
        whole = EnsembleModel(members).eval()
        report = None
        if valid is not None:
            report = evaluate_rows(whole, encoder.schema, valid, RowTensors(valid, self.device))
        history = pl.concat(histories, how="diagonal_relaxed")
        trained = Trained(history, epochs[0], report)
        return Fitted(encoder, whole, trained, None, [], epochs=tuple(epochs))

    def _check_members(self, processes: Processes | None) -> None:
        """Refuse what several members do not go with."""
        for what, given in (
            ("A checkpoint", self.checkpoints),
            ("A warm start", self.start),
            ("Training by several processes", processes),
        ):
            if given is not None:
                check_alone(self.settings, what)
        if self.start is not None:
            check_alone(self.start.settings, "The model of a warm start")

    def _check_computed(self, schema: Schema, processes: Processes | None) -> None:
        """Refuse what features of earlier rows do not go with."""
        if not schema.computed:
            return
        name, ways = schema.computed[0].name, []
        if self.cache is not None:
            ways.append("cache=DiskCache(...), which reads the files as they are,")
        if processes is not None:
            ways.append(f"training by {processes.world} processes")
        for way in ways:
            raise SchemaError(
                f"Feature {name!r} is computed from earlier rows, which {way} does not do yet. Write"
                " the columns to a file first, by AsOfState(schema).learn(rows), and read them as"
                " Numeric and History features."
            )

    def _run_together(
        self, processes: Processes, schema: Schema, rows: Rows, valid: Rows | None
    ) -> Fitted:
        started = time.perf_counter()
        self._check_alike(schema, processes)
        run = Together(
            processes,
            schema,
            self.settings,
            self.seed,
            None if self.cache is None else Path(self.cache.folder),
            self.start,
            self.progress,
        )
        encoder, batch, valid_batch = run.encode(rows, valid)
        memory_bytes = self._memory_bytes(batch)
        encode_seconds = time.perf_counter() - started
        found = run.train(
            encoder,
            rows,
            batch,
            valid_batch,
            checkpoint=self._checkpoint(schema, batch, valid_batch, processes),
            memory_bytes=memory_bytes,
        )
        if found.model is not None:
            found.model.to(self.device)
        trained = _with_encoding(found.trained, encode_seconds)
        return Fitted(encoder, found.model, trained, found.training, found.notes)

    def _check_alike(self, schema: Schema, processes: Processes) -> None:
        """Refuse processes that were given other things than their like; folders may differ."""
        kept = self.checkpoints
        given = {
            "schema": schema.to_dict(),
            "settings": self.settings.to_dict(),
            "checkpoints": None if kept is None else [kept.every_minutes, kept.every_steps],
            "cache": None if self.cache is None else self.cache.memory_mib,
            "warm start": None if self.start is None else self.start.fingerprint(),
        }
        check_alike(given, processes)

    def _encode(
        self, encoder: Encoder, rows: Rows, valid: Rows | None
    ) -> tuple[Batch, Batch | None]:
        known = None if self.start is None else self.start.encoder
        if self.cache is None:
            batch = encoder.fit_encode(rows, known=known)
            return batch, None if valid is None else encoder.encode(valid)
        encoder.fit(rows, known=known)
        cache, progress = EncodedCache(Path(self.cache.folder)), bool(self.progress)
        batch = cache.batch(encoder, rows, labels="taught", progress=progress)
        return batch, None if valid is None else cache.batch(encoder, valid, progress=progress)

    def _memory_bytes(self, batch: Batch) -> int | None:
        """Return what training rows may take in memory; None: all.

        Raises
        ------
        SchemaError
            If it is too little for the batches.
        """
        if self.cache is None:
            return None
        found, size = self.cache.memory_mib, max(sizes_of(self.settings.batch_size))
        if (needed := least_memory(batch, size)) > found * _MIB:
            raise SchemaError(
                f"memory_mib must be at least {-(-needed // _MIB)}: for two windows of two batches of"
                f" {size:,} rows. Found {found}: give more, or take a smaller batch_size."
            )
        return found * _MIB

    def _checkpoint(
        self,
        schema: Schema,
        train: Batch,
        valid: Batch | None,
        processes: Processes | None = None,
    ) -> CheckpointFile | None:
        """Return the checkpoint of the run on these rows, or this process's part, if one is kept."""
        if self.checkpoints is None:
            return None
        identity = {
            "schema": schema.to_dict(),
            "settings": self.settings.to_dict(),
            "seed": self.seed,
            "device type": self.device.type,
            "training rows": rows_identity(train),
            "validation rows": rows_identity(valid),
            "memory_mib": None if self.cache is None else self.cache.memory_mib,
            "warm start": None if self.start is None else f"{self.start.fingerprint():08x}",
        }
        if processes is None:
            return CheckpointFile(self.checkpoints, self.name, identity)
        return CheckpointPart(self.checkpoints, self.name, identity, processes=processes)


def _placed(what: str, kind: type[Place], found: Place | str | Path | None) -> Place | None:
    """Return a place as its spec, of which a folder alone is enough."""
    if isinstance(found, str | Path):
        return kind(str(found))
    if found is not None and not isinstance(found, kind):
        raise SchemaError(f"{what} must be {kind.__name__}(folder), or a folder. Found {found!r}.")
    return found


def _member_seed(seed: int, number: int) -> int:
    """Return the seed of a member; the first has that of the run."""
    return seed if number == 0 else int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


def _with_encoding(trained: Trained, seconds: float) -> Trained:
    """Add the time that reading and encoding took, before the first epoch, to the history."""
    first = pl.when(pl.col("epoch") == 1).then(seconds).otherwise(0.0)
    history = trained.history.with_columns(first.alias("encode_seconds"))
    return Trained(history, trained.best_epoch, trained.report)
