"""Warm starts: a training run that goes on from a fitted model, with its weights and optimizers' state."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys_mtl.encoding import Encoder, row_origins, with_columns
from recsys_mtl.model_dir import Training, read_model_dir
from recsys_mtl.network import MultiTaskModel, Plan, Transplant
from recsys_mtl.reading import AsOfState
from recsys_mtl.recall import from_bytes
from recsys_mtl.schema import Schema
from recsys_mtl.settings import Settings, rebuild
from recsys_mtl.training import Stepper, Trained, build_optimizers

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Renamed:
    """A fitted model to go on from, whose columns have new names by now.

    Parameters
    ----------
    model
        A fitted `MultiTaskRanker`, or a model folder.
    columns
        New names by old ones: of columns of features, labels and weights. What the columns hold must be
        the same.

    Examples
    --------
    >>> Renamed("model", columns={"user": "user_id", "clicked": "click"}).columns["clicked"]
    'click'
    """

    model: Any
    _: KW_ONLY
    columns: Mapping[str, str]


@dataclass(frozen=True)
class WarmStart:
    """A fitted model that a run goes on from; it is left as it is.

    Parameters
    ----------
    encoder, model, settings
        The model, and what it was fitted with.
    training
        The state of its optimizers; None: they begin afresh.
    resume
        Whether the run is one with that of the model, so that random numbers go on, too.
    as_of
        What the model knows of earlier rows, if it has features of them.
    """

    encoder: Encoder
    model: MultiTaskModel
    settings: Settings
    training: Training | None
    resume: bool = False
    as_of: AsOfState | None = None

    @classmethod
    def of_folder(cls, path: str | Path) -> WarmStart:
        """Return the start from a model folder.

        Raises
        ------
        ModelDirError
            If the folder is damaged, incomplete, changed or of an unknown format.
        """
        found = read_model_dir(path)
        encoder, settings, model = rebuild(found, path)
        as_of = from_bytes(found.as_of, encoder.schema, path)
        return cls(encoder, model, settings, found.training, as_of=as_of)

    def reading(self, renamed: Mapping[str, str]) -> WarmStart:
        """Return the same start, of a model that reads its columns by new names.

        Raises
        ------
        SchemaError
            If the model reads no column of an old name.
        """
        schema = with_columns(self.encoder.schema, renamed)
        return replace(self, encoder=Encoder.from_state(schema, *self.encoder.state()))

    def fingerprint(self) -> int:
        """Return a number that tells two starts apart."""
        values, arrays = self.encoder.state()
        known = [self.encoder.schema.to_dict(), self.settings.to_dict(), values, self.resume]
        total = zlib.crc32(json.dumps(known, sort_keys=True).encode())
        for name in sorted(arrays):
            total = zlib.crc32(np.ascontiguousarray(arrays[name]).data, total)
        kept = {} if self.training is None else self.training.tensors()
        for tensors in (self.model.state_dict(), kept):
            for name in sorted(tensors):
                data = np.ascontiguousarray(tensors[name].detach().cpu().numpy())
                total = zlib.crc32(data.data, zlib.crc32(name.encode(), total))
        return total

    def plant(self, encoder: Encoder, model: MultiTaskModel, settings: Settings) -> Planted:
        """Give a new network, on the CPU, what the known one has learned.

        Raises
        ------
        SchemaError
            If a part of the network cannot take over what is known.
        """
        origins = row_origins(encoder.learned, self.encoder.learned)
        old = _plan(self.encoder, self.model, self.settings)
        transplant = Transplant(old, _plan(encoder, model, settings), origins)
        transplant.apply()
        planted = Planted(self, transplant, settings)
        planted.say(_differences(self.encoder, encoder))
        return planted


class Planted:
    """A network that has taken over what is known, and is to be trained.

    Parameters
    ----------
    start
        What it goes on from.
    transplant
        How the two networks go together.
    settings
        What it is trained with.

    Attributes
    ----------
    notes
        What differs from the known model, in words.
    """

    def __init__(self, start: WarmStart, transplant: Transplant, settings: Settings) -> None:
        self.start, self.transplant, self.settings = start, transplant, settings
        self.notes: list[str] = []

    def say(self, notes: list[str]) -> None:
        """Log notes and keep them."""
        self.notes += notes
        for note in notes:
            _log.info("warm start: %s", note)

    def hand_over(self, stepper: Stepper) -> None:
        """Give the optimizers of the network the state of those of the known one."""
        if self.start.training is None:
            self.say(["optimizers begin afresh: the model has no training state"])
            stepper.count_as_trained(self._kept_rows())
        else:
            state = stepper.state()
            state |= self._tables(stepper) | self._moments(stepper) | self._means(stepper)
            state |= self._balance(stepper)
            if self.start.resume:
                state |= {name: v for name, v in self._known.items() if name.startswith("random")}
            stepper.load_state(state)
            # what a run without validation rows leaves as weights is their mean: see `keep_training`
            stepper.swap_average()
        stepper.keep_tables()

    @cached_property
    def _known(self) -> Mapping[str, Tensor]:
        training = self.start.training
        return {} if training is None else training.tensors()

    def _tables(self, stepper: Stepper) -> dict[str, Tensor]:
        """Return the state of the tables' rows, 0 where they are new."""
        if not self._same_kind("table_optimizer"):
            return {f"known.{number}": rows for number, rows in enumerate(self._kept_rows())}
        moved = {}
        for key, fresh in stepper.table_optimizer.state().items():
            number, name = key.split(".", 1)
            empty = torch.zeros_like(fresh, device="cpu")
            moved[f"table.{key}"] = self._rows(int(number), "table.{}." + name, empty)
        if "known.0" in self._known:
            for place, rows in enumerate(self._kept_rows()):
                moved[f"known.{place}"] = self._rows(place, "known.{}", torch.zeros_like(rows))
        return moved

    def _rows(self, number: int, named: str, empty: Tensor) -> Tensor:
        """Return what is kept per row of a table, by its name with the table's number left open."""
        source, places = self.transplant.table_rows(number)
        if source is not None:
            kept = places >= 0
            empty[kept] = self._known[named.format(source)][places[kept]]
        return empty

    def _kept_rows(self) -> list[Tensor]:
        """Return which rows of each table are known."""
        count = len(self.transplant.new.model.embeddings.each())
        return [self.transplant.table_rows(number)[1] >= 0 for number in range(count)]

    def _moments(self, stepper: Stepper) -> dict[str, Tensor]:
        """Return the state of the dense parameters' optimizers."""
        before = dict(_steps_of(self.start.model, self.start.settings))
        moved, lost = {}, set()
        for name, (number, place, kind) in _steps_of(stepper.model, self.settings):
            source = self.transplant.source(name)
            if source is None:
                continue
            old_number, old_place, old_kind = before[source]
            if old_kind is not kind:
                lost.add(f"{kind.__name__} begins afresh where {old_kind.__name__} was")
                continue
            prefix = f"optimizer.{old_number}.{old_place}."
            for key, value in self._known.items():
                if key.startswith(prefix):
                    found = value if value.dim() == 0 else self.transplant.moved(name, value)
                    moved[f"optimizer.{number}.{place}.{key.removeprefix(prefix)}"] = found.clone()
        self.say(sorted(lost))
        return moved

    def _means(self, stepper: Stepper) -> dict[str, Tensor]:
        """Return the running means of the weights, if the known run kept some."""
        old = [name for name, p in self.start.model.named_parameters() if p.requires_grad]
        known = {name: self._known.get(f"average.{n}") for n, name in enumerate(old)}
        moved = {}
        for number, (name, fresh) in enumerate(_trained(stepper.model)):
            source = self.transplant.source(name)
            mean = None if source is None else known[source]
            if mean is not None:
                moved[f"average.{number}"] = self.transplant.moved(name, mean, fresh.detach().cpu())
            else:
                moved[f"average.{number}"] = fresh.detach().clone()
        if self.settings.average is None:
            return {}
        return moved | {"averaged": self._known.get("averaged", torch.tensor(0))}

    def _balance(self, stepper: Stepper) -> dict[str, Tensor]:
        """Return the state of the balance, if it is the same balance of the same tasks."""
        fresh = stepper.balancer.state_dict()
        known = {name: self._known.get(f"balance.{name}") for name in fresh}
        same = self.transplant.old.task_names == self.transplant.new.task_names
        if same and self._same_kind("balance"):
            found = {n: v for n, v in known.items() if v is not None and v.shape == fresh[n].shape}
            if len(found) == len(fresh):
                return {f"balance.{name}": value for name, value in found.items()}
        if fresh:
            self.say([f"balance {self.settings.balance.kind!r} begins afresh"])
        return {}

    def _same_kind(self, part: str) -> bool:
        """Tell whether a setting is of the kind that the known model was trained with."""
        now, before = getattr(self.settings, part), getattr(self.start.settings, part)
        if now.kind != before.kind and part == "table_optimizer":
            self.say([f"{now.kind!r} begins afresh where {before.kind!r} was"])
        return bool(now.kind == before.kind)


def keep_training(stepper: Stepper, trained: Trained) -> dict[str, Tensor]:
    """Return what a later run needs to go on, beside the weights: on the CPU, not copies.

    With validation rows the weights are those of the best epoch, while the optimizers' state is that
    of the last step: it is a record of the sizes of gradients, which a few epochs hardly change.
    Running means then start from the best weights, too.
    """
    state = {name: value.detach().cpu() for name, value in stepper.state().items()}
    state = {name: value for name, value in state.items() if not name.startswith("model.")}
    if trained.report is not None:
        for number, parameter in enumerate(stepper.dense):
            if f"average.{number}" in state:
                state[f"average.{number}"] = parameter.detach().cpu().clone()
    return state


def _plan(encoder: Encoder, model: MultiTaskModel, settings: Settings) -> Plan:
    return Plan(
        model,
        encoder.layout,
        settings.interaction,
        settings.sharing,
        settings.heads,
        settings.extractors,
        settings.sequences,
    )


def _trained(model: MultiTaskModel) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _steps_of(
    model: MultiTaskModel, settings: Settings
) -> Iterator[tuple[str, tuple[int, int, type[torch.optim.Optimizer]]]]:
    """List the dense parameters, each with its optimizer's number, its place there, and its kind."""
    names = {id(parameter): name for name, parameter in _trained(model)}
    built = build_optimizers(model, settings.optimizer, settings.tower_optimizers)
    for number, optimizer in enumerate(built):
        for place, parameter in enumerate(optimizer.param_groups[0]["params"]):
            yield names[id(parameter)], (number, place, type(optimizer))


def _differences(before: Encoder, after: Encoder) -> list[str]:
    """Say in words how schema and tables differ."""
    notes = []
    for what in ("features", "tasks"):
        known, found = (_names(encoder.schema, what) for encoder in (before, after))
        notes += [f"{what[:-1]} {name!r} is new" for name in found if name not in known]
        notes += [f"{what[:-1]} {name!r} is gone" for name in known if name not in found]
    sizes = {table.name: table.num_rows for table in before.layout.tables}
    notes += [
        f"table {table.name!r}: {sizes[table.name]:,} -> {table.num_rows:,} rows"
        for table in after.layout.tables
        if sizes.get(table.name, table.num_rows) != table.num_rows
    ]
    return notes


def _names(schema: Schema, what: str) -> list[str]:
    return [one.name for one in (schema.features if what == "features" else schema.tasks)]
