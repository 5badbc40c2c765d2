"""Settings: all that a model is fitted with beside the schema, and the network they describe."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field

from recsys_mtl.encoding import OBSERVED, Batch, Encoder
from recsys_mtl.errors import EncodingError, ModelDirError, SchemaError
from recsys_mtl.model_dir import ModelDir
from recsys_mtl.network import (
    Extractor,
    Heads,
    Interaction,
    MMoE,
    MultiTaskModel,
    NoInteraction,
    SequenceEncoder,
    Shard,
    Sharing,
    Towers,
    check_features,
    idle_links,
)
from recsys_mtl.network.ensemble import EnsembleModel
from recsys_mtl.schema import History, Numeric, Schema, Vector
from recsys_mtl.spec import Spec, spec
from recsys_mtl.training import (
    TrainConfig,
    check_accumulation,
    check_losses,
    check_signs,
    check_towers,
    seeded,
)

_WHOLE = Shard()


@spec
class ModelConfig(Spec):
    """The network, or how many of it: the arguments of `MultiTaskRanker` of the same names."""

    _: KW_ONLY
    sharing: Sharing = MMoE()
    heads: Heads = Towers()
    embedding_dim: Annotated[int, Field(ge=1)] = 16
    embedding_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    sequences: Annotated[Sequence[SequenceEncoder], AfterValidator(tuple)] = ()
    interaction: Interaction = NoInteraction()
    extractors: Annotated[Sequence[Extractor], AfterValidator(tuple)] = ()
    num_members: Annotated[int, Field(ge=1)] = 1


@spec
class Settings(ModelConfig, TrainConfig):
    """All that a model was fitted with beside the schema: the arguments of `MultiTaskRanker`."""

    _: KW_ONLY
    random_state: int | None = None


def check_settings(schema: Schema, settings: Settings) -> None:
    """Check settings against the schema before any row is read.

    Raises
    ------
    SchemaError
        If a part does not fit the features or tasks.
    ImportError
        If a balance needs a package that is not installed.

    Warns
    -----
    UserWarning
        If heads or tasks name links between tasks that change nothing.
    """
    histories = [f.name for f in schema.features if isinstance(f, History)]
    numbers = [f.name for f in schema.features if isinstance(f, Vector)]
    numbers += [
        f.name
        for f in schema.features
        if isinstance(f, Numeric) and f.scaling in {"standard", "log"}
    ]
    check_features("sequences", [one.feature for one in settings.sequences], histories)
    check_features("extractors", [one.feature for one in settings.extractors], numbers)
    with seeded(0, torch.device("cpu")):  # what is drawn here is thrown away
        settings.balance.build(schema.tasks, seed=0, device="cpu")
        heads = settings.heads.build(1, schema.tasks)
    check_losses(schema.tasks, heads)
    check_signs(settings.balance, heads)
    check_accumulation(settings)
    check_towers([task.name for task in schema.tasks], settings.tower_optimizers)
    idle = idle_links(settings.heads, schema.tasks)
    if idle is not None:  # one place for all callers, so that Python shows the text once
        warnings.warn(idle, UserWarning, stacklevel=1)


def check_rows(schema: Schema, batch: Batch, valid: Batch | None) -> None:
    """Refuse rows that nothing can be learned from, or chosen by.

    Raises
    ------
    EncodingError
        If a task has no observed label to train on, or no validation label at all is observed.
    """
    if valid is not None and valid.num_rows == 0:
        raise EncodingError("valid must hold rows. Found an empty table.")
    if batch.states is None or batch.weights is None:
        raise ValueError("Training needs rows encoded with labels.")
    known = np.zeros(len(schema.tasks), np.bool_)
    for start in range(0, batch.num_rows, 1 << 20):  # they may be mapped from disk
        rows = slice(start, start + (1 << 20))
        known |= ((batch.states[rows] == OBSERVED) & (batch.weights[rows] > 0)).any(axis=0)
    for task, found in zip(schema.tasks, known, strict=True):
        if task.weight > 0 and not found:
            raise EncodingError(
                f"Task {task.name!r} needs rows to train on where its label {task.label!r} is"
                " observed. Found none: remove the task or set its weight to 0."
            )
    if valid is not None and not np.any(valid.states == OBSERVED):
        raise EncodingError("valid must hold rows with observed labels. Found none.")


def build_network(
    encoder: Encoder, settings: ModelConfig, *, shard: Shard = _WHOLE
) -> MultiTaskModel:
    """Make the network for a fitted encoder, with the rows of its tables that a process holds."""
    return MultiTaskModel(
        encoder.layout,
        encoder.schema.tasks,
        sharing=settings.sharing,
        heads=settings.heads,
        embedding_dim=settings.embedding_dim,
        embedding_dropout=settings.embedding_dropout,
        sequences=settings.sequences,
        interaction=settings.interaction,
        extractors=settings.extractors,
        shard=shard,
    )


def rebuild(found: ModelDir, path: object) -> tuple[Encoder, Settings, MultiTaskModel]:
    """Make the model that a folder holds, on the CPU.

    Parameters
    ----------
    found
        What the folder holds.
    path
        The folder, for errors.

    Raises
    ------
    ModelDirError
        If this version of the package makes another model of it.
    """
    try:
        schema = Schema.from_dict(found.schema, path="schema")
        settings = Settings.from_dict(found.model, path="model")
        encoder = Encoder.from_state(schema, found.encoder, found.encoder_arrays)
        with seeded(0, torch.device("cpu")):  # what is drawn here is overwritten
            members = [build_network(encoder, settings) for _ in range(settings.num_members)]
        model = members[0] if len(members) == 1 else EnsembleModel(members)
        model.load_state_dict(dict(found.weights))
    except (SchemaError, KeyError, RuntimeError) as error:
        raise ModelDirError(
            f"{path} does not fit this version of the package: {error} If a kind is one of your own,"
            " import the module that defines it first (by command: --import MODULE)."
        ) from error
    return encoder, settings, model


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


def check_without_valid(settings: Settings, *, refit: bool) -> None:
    """Refuse what only validation rows can choose.

    Raises
    ------
    ValueError
        If a metric is monitored, or the number of epochs of a refit is to be chosen.
    """
    if settings.monitor != "loss":
        raise ValueError(f"monitor={settings.monitor!r} needs valid rows. Found none.")
    if refit:
        raise ValueError("refit=True needs valid rows: they choose the number of epochs.")


def check_alone(settings: Settings, what: str) -> None:
    """Refuse what goes with a single network only.

    Raises
    ------
    SchemaError
        If the settings ask for several members.
    """
    if settings.num_members > 1:
        raise SchemaError(
            f"{what} needs num_members=1: several networks have no one state to go on from. Found"
            f" num_members={settings.num_members}: leave it out, or train one network."
        )


def refuse_labels(y: object) -> None:
    """Raise unless y, which scikit-learn's convention passes, is None."""
    if y is not None:
        raise TypeError(
            "y must be None: labels are columns of the table. Validation rows go by name:"
            " fit(train, valid=valid)."
        )
