"""Settings: all that a model is fitted with beside the schema, and the network they describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field

from recsys_mtl.encoding import Batch, Encoder
from recsys_mtl.errors import SchemaError
from recsys_mtl.network import (
    Extractor,
    Heads,
    Interaction,
    MMoE,
    MultiTaskModel,
    NoInteraction,
    SequenceEncoder,
    Sharing,
    Towers,
    check_features,
)
from recsys_mtl.schema import History, Numeric, Schema, Vector
from recsys_mtl.spec import Spec, spec
from recsys_mtl.training import (
    CheckpointFile,
    Checkpoints,
    TrainConfig,
    check_losses,
    check_signs,
    check_towers,
    checksum,
    seeded,
)


@spec
class ModelConfig(Spec):
    """The network: the arguments of `MultiTaskRanker` of the same names."""

    _: KW_ONLY
    sharing: Sharing = MMoE()
    heads: Heads = Towers()
    embedding_dim: Annotated[int, Field(ge=1)] = 16
    sequences: Annotated[Sequence[SequenceEncoder], AfterValidator(tuple)] = ()
    interaction: Interaction = NoInteraction()
    extractors: Annotated[Sequence[Extractor], AfterValidator(tuple)] = ()


@spec
class Settings(ModelConfig, TrainConfig):
    """All that a model was fitted with beside the schema: the arguments of `MultiTaskRanker`."""

    _: KW_ONLY
    random_state: int | None = None


@dataclass(frozen=True)
class Fit:
    """One training run of a fit: its settings, device, seed, and where its state is kept."""

    settings: Settings
    device: torch.device
    seed: int
    checkpoints: Checkpoints | None
    name: str

    def checkpoint(
        self, schema: Schema, train: Batch, valid: Batch | None
    ) -> CheckpointFile | None:
        """Return the checkpoint of the run on these rows, if one is kept."""
        if self.checkpoints is None:
            return None
        identity = {
            "schema": schema.fingerprint(),
            "settings": self.settings.fingerprint(),
            "seed": self.seed,
            "device type": self.device.type,
            "training rows": checksum(train),
            "validation rows": None if valid is None else checksum(valid),
        }
        return CheckpointFile(self.checkpoints, self.name, identity)


def check_settings(schema: Schema, settings: Settings) -> None:
    """Check settings against the schema before any row is read.

    Raises
    ------
    SchemaError
        If a part does not fit the features or tasks.
    ImportError
        If a balance needs a package that is not installed.
    """
    histories = [f.name for f in schema.features if isinstance(f, History)]
    numbers = [f.name for f in schema.features if isinstance(f, Vector)]
    numbers += [
        f.name for f in schema.features if isinstance(f, Numeric) and f.scaling != "quantile"
    ]
    check_features("sequences", [one.feature for one in settings.sequences], histories)
    check_features("extractors", [one.feature for one in settings.extractors], numbers)
    with seeded(0, torch.device("cpu")):  # what is drawn here is thrown away
        settings.balance.build(schema.tasks, seed=0, device="cpu")
        heads = settings.heads.build(1, schema.tasks)
    check_losses(schema.tasks, heads)
    check_signs(settings.balance, heads)
    check_towers([task.name for task in schema.tasks], settings.tower_optimizers)


def build_network(encoder: Encoder, settings: ModelConfig) -> MultiTaskModel:
    """Make the network for a fitted encoder."""
    return MultiTaskModel(
        encoder.layout,
        encoder.schema.tasks,
        sharing=settings.sharing,
        heads=settings.heads,
        embedding_dim=settings.embedding_dim,
        sequences=settings.sequences,
        interaction=settings.interaction,
        extractors=settings.extractors,
    )


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
