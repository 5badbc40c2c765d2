"""A compiled network learns what the same network learns without torch.compile."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from polars import selectors as cs

from recsys_mtl.encoding import Batch
from recsys_mtl.network import PLE, MMoE, MultiTaskModel, Sharing
from recsys_mtl.schema import Schema
from recsys_mtl.training import TrainConfig, Trainer


@pytest.mark.slow  # compiles C++
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch.compile's own imports
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
@pytest.mark.parametrize("sharing", [MMoE(3, expert_dims=(8,)), PLE(expert_dims=(8,))])
def test_compiled_steps_are_those_of_the_plain_network(
    sharing: Sharing,
    schema: Schema,
    make_batch: Callable[..., Batch],
    make_model: Callable[..., MultiTaskModel],
) -> None:
    """Batches of 64, and a last one of 22; float32, so that only the order of sums differs."""
    batch, found = make_batch(150), []
    for compiled in (False, True):
        model = make_model(sharing=sharing)
        model.learn_outputs(batch)
        config = TrainConfig(batch_size=64, max_epochs=3, compile=compiled)
        trained = Trainer(model, schema, config, seed=0, progress=False).fit(batch)
        found.append((trained.history.select(cs.starts_with("train_loss")), model.state_dict()))
    (history, state), (other_history, other_state) = found
    torch.testing.assert_close(
        other_history.to_torch(), history.to_torch(), rtol=1e-4, atol=1e-6, check_dtype=False
    )
    for name, value in state.items():
        torch.testing.assert_close(
            other_state[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
