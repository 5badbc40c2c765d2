"""Vectors of numbers, against plain numpy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch

from recsys_mtl.encoding import EncodedNumber, Encoder
from recsys_mtl.errors import SchemaError
from recsys_mtl.network import (
    STEM,
    FeatureLayer,
    MLPExtractor,
    NoInteraction,
    RowTensors,
    SharedBottom,
    check_features,
)
from recsys_mtl.network.numbers import Periodic, Piecewise, number_layers
from recsys_mtl.schema import Binary, Categorical, Numeric, Schema
from recsys_mtl.settings import ModelConfig, build_network

NAN = float("nan")
EDGES = {"a": [0.0, 1, 3, 10], "b": [-5.0, 5], "c": [0.0, 2, 4, 5, 6, 9]}


def _dense(rows: list[list[float]]) -> torch.Tensor:
    """One column of rubbish, then places and flags."""
    values = np.array(rows)
    missing = np.isnan(values)
    pairs = np.stack([np.where(missing, 0, values), missing], axis=2).reshape(len(rows), -1)
    return torch.tensor(np.concatenate([np.full((len(rows), 1), 9.0), pairs], 1)).float()


def _features(kind: str, sizes: list[int]) -> list[EncodedNumber]:
    return [EncodedNumber(f"x{n}", kind, size, None) for n, size in enumerate(sizes)]


def test_piecewise_is_the_papers_encoding_then_a_linear_map_and_relu() -> None:
    """The twin takes values and edges; the layer takes places among them."""
    rng = np.random.default_rng(0)
    values = np.stack([rng.uniform(edges[0] - 3, edges[-1] + 3, 40) for edges in EDGES.values()], 1)
    edges = [np.array(one) for one in EDGES.values()]
    places = np.empty_like(values)
    for number, own in enumerate(edges):
        bins = np.clip(np.searchsorted(own, values[:, number], side="right") - 1, 0, len(own) - 2)
        places[:, number] = bins + (values[:, number] - own[bins]) / (own[bins + 1] - own[bins])
    layer = Piecewise(_features("piecewise", [len(own) - 1 for own in edges]), [1, 3, 5], 4)
    found = layer(_dense(places.tolist())).detach().numpy().reshape(40, 3, 4)
    for number, own in enumerate(edges):
        columns = []
        for t, (low, high) in enumerate(pairwise(own)):
            share = (values[:, number] - low) / (high - low)
            least = -np.inf if t == 0 else 0
            most = np.inf if t == len(own) - 2 else 1
            columns.append(share.clip(least, most))
        weights = layer.weight_PKD[number, : len(own) - 1].detach().numpy()
        bias = layer.bias_PD[number].detach().numpy()
        expected = np.maximum(np.stack(columns, 1) @ weights + bias, 0)
        np.testing.assert_allclose(found[:, number], expected, atol=1e-5)
    assert not layer.weight_PKD[1, 1:].any()


def test_periodic_is_cosine_and_sine_then_a_linear_map_and_relu() -> None:
    layer = Periodic(_features("periodic", [3, 3]), [3, 1], 5)
    torch.nn.init.normal_(layer.frequency_PK)
    rows = [[0.5, -1.0], [2.0, 0.0], [-0.3, 4.0]]
    found = layer(_dense(rows)).detach().numpy().reshape(3, 2, 5)
    for number, column in enumerate([1, 0]):
        angle = 2 * np.pi * np.outer(np.array(rows)[:, column], layer.frequency_PK[number].detach())
        both = np.stack([np.cos(angle), np.sin(angle)], axis=2).reshape(3, 6)
        linear = (
            both @ layer.weight_PKD[number].detach().numpy()
            + layer.bias_PD[number].detach().numpy()
        )
        np.testing.assert_allclose(found[:, number], np.maximum(linear, 0), atol=1e-5)


def test_frequencies_are_drawn_with_the_features_own_deviation() -> None:
    features = [
        EncodedNumber(f"x{n}", "periodic", 500, 4, scale) for n, scale in enumerate([0.1, 2.0])
    ]
    deviations = Periodic(features, [0, 2], 4).frequency_PK.std(dim=1).tolist()
    assert deviations == pytest.approx([0.1, 2.0], rel=0.1)


@pytest.mark.parametrize("kind", ["piecewise", "periodic"])
def test_a_missing_number_has_a_learned_vector_of_its_own(kind: str) -> None:
    (layer,) = number_layers(_features(kind, [3, 3]), [1, 3], 4).values()
    torch.nn.init.normal_(layer.missing_PD)
    found = layer(_dense([[NAN, 0.5], [0.5, NAN]])).view(2, 2, 4)
    assert torch.equal(found[0, 0], layer.missing_PD[0])
    assert torch.equal(found[1, 1], layer.missing_PD[1])
    found.sum().backward()
    assert layer.missing_PD.grad.eq(1).all()
    for parameter in layer.parameters():
        assert parameter.grad.isfinite().all()


def test_features_of_one_kind_and_width_share_a_layer() -> None:
    features = [
        EncodedNumber("a", "piecewise", 3, None),
        EncodedNumber("b", "periodic", 2, None),
        EncodedNumber("c", "piecewise", 7, 4),
        EncodedNumber("d", "piecewise", 7, 5),
    ]
    layers = number_layers(features, [0, 2, 4, 6], 4)
    assert list(layers) == ["piecewise_4", "periodic_2_4", "piecewise_5"]
    assert [one.name for one in layers["piecewise_4"].features] == ["a", "c"]


TABLE = pl.DataFrame(
    {
        "id": [1, 2, 3, 1, 2],
        "age": [1.0, 2.0, None, 4.0, 5.0],
        "price": [0.1, None, 0.3, 0.4, 0.5],
        "size": [5.0, 4.0, 3.0, 2.0, 1.0],
        "click": [1, 0, 1, 0, 1],
    }
)
SCHEMA = Schema(
    context=[
        Numeric("age", scaling="piecewise", num_quantiles=3),
        Numeric("size", scaling="log"),
        Categorical("id"),
        Numeric("price", scaling="periodic", num_frequencies=2, embedding_dim=3),
    ],
    tasks=[Binary("ctr", label="click"), Binary("again", label="click")],
)


def test_columns_say_where_encoded_numbers_lie_behind_plain_ones() -> None:
    encoder = Encoder(SCHEMA).fit(TABLE)
    layer = FeatureLayer(
        encoder.layout,
        embedding_dim=4,
        num_views=1,
        sequences=(),
        interaction=NoInteraction(),
        extractors=(),
    )
    assert layer.columns.slices == {
        "id": slice(0, 4),
        "size": slice(4, 6),
        "age": slice(6, 10),
        "price": slice(10, 13),
    }
    inputs = RowTensors(encoder.encode(TABLE), torch.device("cpu")).take(torch.arange(5))
    x_BI = layer(layer.embeddings(inputs), inputs)[:, 0]
    (age, price) = layer.number_layers()
    assert torch.equal(x_BI[:, 6:10], age(inputs.dense_BN))
    assert torch.equal(x_BI[:, 10:], price(inputs.dense_BN))
    assert torch.equal(x_BI[:, 4:6], inputs.dense_BN[:, 2:4])


@pytest.mark.parametrize("sharing", [SharedBottom((4,)), STEM(expert_dims=(4,))], ids=str)
def test_every_view_reads_the_same_vectors(sharing: SharedBottom | STEM) -> None:
    encoder = Encoder(SCHEMA).fit(TABLE)
    model = build_network(encoder, ModelConfig(sharing=sharing, embedding_dim=4))
    inputs = RowTensors(encoder.encode(TABLE), torch.device("cpu")).take(torch.arange(5))
    x_BVI = model.features(model.embeddings(inputs), inputs)
    assert (x_BVI[:, :, 6:] == x_BVI[:, :1, 6:]).all()
    for rows in (0, 1):
        few = RowTensors(encoder.encode(TABLE), torch.device("cpu")).take(torch.arange(rows))
        assert model(few).logits_BZ.shape == (rows, 2)


@pytest.mark.parametrize("sharing", [SharedBottom((4,)), STEM(expert_dims=(4,))], ids=str)
def test_embedding_dropout_sets_its_share_of_vectors_to_zero(sharing: SharedBottom | STEM) -> None:
    """Within four standard errors, the rest scaled up; given numbers stay, as does all in evaluation."""
    encoder = Encoder(SCHEMA).fit(TABLE)
    config = ModelConfig(sharing=sharing, embedding_dim=4, embedding_dropout=0.25)
    layer = build_network(encoder, config).features
    for number in layer.number_layers():
        torch.nn.init.ones_(number.bias_PD)
        torch.nn.init.ones_(number.missing_PD)
    rows_B = torch.arange(1000) % 5
    inputs = RowTensors(encoder.encode(TABLE), torch.device("cpu")).take(rows_B)
    whole = layer.eval()(layer.embeddings(inputs), inputs)
    dropped = layer.train()(layer.embeddings(inputs), inputs)
    assert torch.equal(dropped[:, :, 4:6], whole[:, :, 4:6])
    for part in (slice(0, 4), slice(6, 13)):
        lost = (dropped[:, :, part] == 0) & (whole[:, :, part] != 0)
        known = int((whole[:, :, part] != 0).sum() / whole.shape[1])
        share = float(lost.sum() / (whole[:, :, part] != 0).sum())
        assert abs(share - 0.25) <= 4 * (0.25 * 0.75 / known) ** 0.5
        expected = torch.where(lost, 0.0, whole[:, :, part] / 0.75)
        torch.testing.assert_close(dropped[:, :, part], expected)


def test_an_extractor_for_an_encoded_number_is_refused() -> None:
    with pytest.raises(SchemaError, match="standard or log Numeric"):
        build_network(Encoder(SCHEMA).fit(TABLE), ModelConfig(extractors=[MLPExtractor("age")]))
    check_features("extractors", ["size"], ["size"])


def test_too_many_bins_are_refused() -> None:
    with pytest.raises(SchemaError, match=r"at most 1,024 .* Found 2,000"):
        Numeric("x", scaling="piecewise", num_quantiles=2000)
