"""The matrix products of an epoch alone, at the shapes of the package's network."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the scripts are run by path

from benchmarks.contenders.ours import Ours
from benchmarks.contenders.worker import BATCH, serve
from benchmarks.training import Products


class ProductsOnly(Ours):
    """Prepares as the package does, then computes nothing but products."""

    def prepare(self) -> None:
        """Make the factors of a step's products."""
        super().prepare()
        dtype = getattr(torch, self.work.options.get("precision", "float32"))
        self.products = Products(self.trainer.model, BATCH, training=True, dtype=dtype)
        self.num_steps = self.batch.num_rows // BATCH

    def epoch(self) -> None:
        """Compute the products of an epoch; a short last batch is left out."""
        for _ in range(self.num_steps):
            self.products.run()


if __name__ == "__main__":
    serve(ProductsOnly)
