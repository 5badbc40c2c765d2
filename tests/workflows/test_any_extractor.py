"""Networks in front of sharing: pixels, tokens, given vectors, alone or beside tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from torch import nn

from recsys_mtl import (
    Adam,
    Binary,
    Categorical,
    History,
    Multiclass,
    MultiTaskRanker,
    Regression,
    Schema,
    SharedBottom,
    Towers,
    Vector,
    load,
)
from recsys_mtl.network import Extractor, Mean, SequenceEncoder
from recsys_mtl.network.extractor.image_cnn import ImageCNN
from recsys_mtl.network.sequence.gru import GRU
from recsys_mtl.spec import spec


@spec
class TwoLayers(Extractor, kind="two_layers_of_a_test"):
    """Any network of a user's own."""

    width: int = 8

    def build(self, input_dim: int) -> nn.Module:
        return nn.Sequential(nn.Linear(input_dim, self.width), nn.Tanh(), nn.Linear(self.width, 4))


def _digits() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Images of digits; beside the digit, how much neighbouring pixels differ: its contrast."""
    images, digit = load_digits(return_X_y=True)
    pixels = (images / 16).astype(np.float32)
    steps = np.diff(pixels.reshape(-1, 8, 8), axis=2)
    table = pl.DataFrame(
        {
            "image": pl.Series(pixels, dtype=pl.Array(pl.Float32, 64)),
            "digit": digit,
            "contrast": np.abs(steps).sum(axis=(1, 2)),
        }
    ).sample(fraction=1.0, shuffle=True, seed=0)
    return table[:1300], table[1300:]


def _ranker(**choices: object) -> MultiTaskRanker:
    schema = Schema(
        context=[Vector("image", dim=64)],
        tasks=[
            Multiclass("digit", label="digit", num_classes=10),
            Regression("contrast", label="contrast"),
        ],
    )
    settings = {"sharing": SharedBottom((64,)), "heads": Towers(()), "batch_size": 64}
    return MultiTaskRanker(schema, random_state=0, device="cpu", **settings | choices)


def test_a_cnn_learns_class_and_contrast_of_a_digit_together(tmp_path: Path) -> None:
    """Contrast is no linear function of the pixels; the digit nearly is."""
    train, test = _digits()
    cnn = ImageCNN("image", shape=(1, 8, 8), channels=(32, 64))
    # width, rate and epochs were chosen on the last 300 training images
    ranker = _ranker(extractors=[cnn], optimizer=Adam(1e-3), max_epochs=30).fit(train)
    pixels, rest = train["image"].to_numpy(), test["image"].to_numpy()
    ridge = Ridge().fit(pixels, train["contrast"])
    found = ranker.evaluate(test)
    assert found.value("digit", "accuracy") > 0.95
    error = np.sqrt(np.mean((ridge.predict(rest) - test["contrast"].to_numpy()) ** 2))
    assert found.value("contrast", "rmse") < 0.75 * error
    ranker.save(tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu")
    assert loaded.predict(test).equals(ranker.predict(test))
    assert loaded.extractors == (cnn,)


def test_a_network_of_ones_own_stands_beside_tables_and_is_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shop, noise = rng.integers(0, 5, 4000), rng.normal(size=(4000, 3)).astype(np.float32)
    wave = np.sin(2 * noise[:, 0]) * noise[:, 1]  # neither linear nor a table's
    table = pl.DataFrame(
        {
            "shop": shop,
            "given": pl.Series(noise, dtype=pl.Array(pl.Float32, 3)),
            "click": (wave + (shop % 2) > 0.5).astype(np.int8),
        }
    )
    schema = Schema(
        context=[Categorical("shop"), Vector("given", dim=3)],
        tasks=[Binary("ctr", label="click")],
    )
    ranker = MultiTaskRanker(
        schema,
        sharing=SharedBottom(()),
        heads=Towers(()),
        extractors=[TwoLayers("given", width=32)],
        optimizer=Adam(0.01),
        batch_size=128,
        max_epochs=8,
        random_state=0,
        device="cpu",
    ).fit(table[:3000])
    without = clone(ranker).set_params(extractors=())
    test = table[3000:]
    linear = without.fit(table[:3000]).evaluate(test).value("ctr", "auc")
    assert ranker.evaluate(test).value("ctr", "auc") > linear + 0.05
    ranker.save(tmp_path / "model")
    assert load(tmp_path / "model", device="cpu").predict(test).equals(ranker.predict(test))


@pytest.mark.parametrize(("encoder", "learns"), [(GRU(), True), (Mean(), False)])
def test_the_order_of_words_is_read_by_an_rnn_and_not_by_the_mean(
    encoder: SequenceEncoder, learns: bool
) -> None:
    """The label says which of two words comes first; as a bag, all texts with both are alike."""
    rng = np.random.default_rng(0)
    words = np.array(["good", "bad", "film", "plot"])
    texts, labels = [], []
    for _ in range(1500):
        text = list(rng.permutation(words))
        texts.append(" ".join(text))
        labels.append(int(text.index("good") < text.index("bad")))
    table = pl.DataFrame({"text": texts, "liked": labels})
    schema = Schema(context=[History("text", separator=" ")], tasks=[Binary("like", label="liked")])
    ranker = MultiTaskRanker(
        schema,
        sharing=SharedBottom((16,)),
        heads=Towers(()),
        sequences=[encoder],
        optimizer=Adam(0.01),
        batch_size=64,
        max_epochs=12,
        random_state=0,
        device="cpu",
    ).fit(table[:1000])
    found = ranker.evaluate(table[1000:]).value("like", "auc")
    assert (found > 0.95) if learns else (abs(found - 0.5) < 0.08)
