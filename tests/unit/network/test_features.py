"""What stands where in the input of sharing, and what reaches encoders and extractors."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from recsys_mtl.encoding import InputLayout, TableSize
from recsys_mtl.errors import SchemaError
from recsys_mtl.network import Extractor, FeatureLayer, Inputs, Mean, NoInteraction, SequenceEncoder
from recsys_mtl.network.features import pad
from recsys_mtl.network.inputs import ListInput
from recsys_mtl.network.sequence import SequenceModule
from recsys_mtl.spec import spec

LAYOUT = InputLayout(
    tables=(
        TableSize("user", 7, 2),
        TableSize("item", 9, None),
        TableSize("tag", 6, None),
    ),
    id_tables=("user", "tag", "item"),
    list_tables=("item", "tag", "item"),
    dense_dim=6,
    id_names=("user", "first_tag", "item"),
    list_names=("seen", "tags", "bought"),
    dense_names=(("age", 2), ("image", 3), ("price", 1)),
    histories=(0, 2),
)


@spec
class Spread(SequenceEncoder):
    """The sum of events weighed 1, 2, 3 ... by their place, plus ten targets."""

    needs_target: ClassVar[bool] = True

    def build(self, embedding_dim: int) -> SequenceModule:
        return _Spread(embedding_dim)


class _Spread(SequenceModule):
    def encode(self, history_BLD: Tensor, mask_BL: Tensor, target_BD: Tensor | None) -> Tensor:
        assert target_BD is not None
        assert not history_BLD[~mask_BL].any()
        place_L = torch.arange(1, history_BLD.shape[1] + 1, dtype=history_BLD.dtype)
        return (history_BLD * place_L[:, None]).sum(dim=1) + 10 * target_BD


@spec
class MeanOfEvents(Mean):
    """The mean, of events laid out one by one."""

    pooled_first: ClassVar[bool] = False


@spec
class Halves(Extractor):
    """The first number, doubled."""

    def build(self, input_dim: int) -> nn.Module:
        layer = nn.Linear(input_dim, 2, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[2.0, 0, 0], [0, 0, 1.0]]))
        return layer


def _list(rows: list[list[int]], *, mean: bool) -> ListInput:
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    weights = [1 / len(row) if mean else 1.0 for row in rows for _ in row]
    values = torch.tensor([value for row in rows for value in row], dtype=torch.int32)
    return ListInput(values, lengths.cumsum(0) - lengths, torch.tensor(weights))


SEEN = [[3, 4, 5], [], [8]]
BOUGHT = [[], [4], [5, 6]]


def _inputs() -> Inputs:
    return Inputs(
        torch.tensor([[1, 3, 6], [2, 4, 7], [3, 5, 8]], dtype=torch.int32),
        (_list(SEEN, mean=True), _list([[3], [3, 4], []], mean=False), _list(BOUGHT, mean=True)),
        torch.arange(18, dtype=torch.float32).view(3, 6),
    )


def _layer(
    *sequences: SequenceEncoder, extractors: tuple[Extractor, ...] = (), num_views: int = 1
) -> FeatureLayer:
    torch.manual_seed(0)
    layer = FeatureLayer(
        LAYOUT,
        embedding_dim=4,
        num_views=num_views,
        sequences=sequences,
        interaction=NoInteraction(),
        extractors=extractors,
    ).double()
    for module in layer.sequences:
        nn.init.normal_(module.get_parameter("empty_D"))
    return layer


def _out(layer: FeatureLayer, inputs: Inputs) -> Tensor:
    return layer(layer.embeddings(inputs), inputs)


def _vectors(layer: FeatureLayer, table: str) -> Tensor:
    found = next(one for one in layer.embeddings.each() if table in one.bases)
    base = found.bases[table]
    return found.weight_RD[base : base + found.num_rows[table]]


def test_events_are_laid_out_at_the_front_of_their_row() -> None:
    found = _list([[1, 2], [], [3]], mean=False)
    padded, mask = pad(torch.tensor([[1.0], [2.0], [3.0]]), found)
    assert padded[..., 0].tolist() == [[1, 2], [0, 0], [3, 0]]
    assert mask.tolist() == [[True, True], [False, False], [True, False]]


@pytest.mark.parametrize("num_rows", [0, 2])
def test_histories_without_any_event_are_laid_out_with_no_columns(num_rows: int) -> None:
    padded, mask = pad(torch.zeros(0, 5), _list([[]] * num_rows, mean=False))
    assert padded.shape == (num_rows, 0, 5)
    assert mask.shape == (num_rows, 0)


def test_every_feature_stands_where_the_columns_say() -> None:
    layer, inputs = _layer(), _inputs()
    x_BI = _out(layer, inputs)[:, 0]
    slices = layer.columns.slices
    assert sorted(slices) == sorted([*LAYOUT.id_names, *LAYOUT.list_names, "age", "image", "price"])
    for number, name in enumerate(LAYOUT.id_names):
        rows_B = inputs.ids_BF[:, number]
        expected = _vectors(layer, LAYOUT.id_tables[number])[rows_B]
        assert torch.equal(x_BI[:, slices[name]], expected)
    tags = _vectors(layer, "tag")
    assert torch.equal(x_BI[0, slices["tags"]], tags[3])
    torch.testing.assert_close(x_BI[1, slices["tags"]], tags[3] + tags[4])
    assert torch.equal(x_BI[:, slices["age"]], inputs.dense_BN[:, :2].double())
    assert torch.equal(x_BI[:, slices["price"]], inputs.dense_BN[:, 5:].double())
    assert layer.output_dim == x_BI.shape[1] == sum(s.stop - s.start for s in slices.values())


def test_histories_without_an_encoder_are_the_mean_and_empty_ones_a_learned_vector() -> None:
    layer, inputs = _layer(), _inputs()
    x_BI = _out(layer, inputs)[:, 0]
    items = _vectors(layer, "item")
    empty = [module.get_parameter("empty_D") for module in layer.sequences]
    for name, rows, empty_D in zip(("seen", "bought"), (SEEN, BOUGHT), empty, strict=True):
        for row, events in enumerate(rows):
            expected = items[events].mean(dim=0) if events else empty_D
            torch.testing.assert_close(x_BI[row, layer.columns.slices[name]], expected)


def test_a_mean_pooled_by_the_table_equals_the_mean_of_events_laid_out() -> None:
    pooled, apart, inputs = _layer(), _layer(MeanOfEvents()), _inputs()
    apart.load_state_dict(pooled.state_dict())
    torch.testing.assert_close(_out(pooled, inputs), _out(apart, inputs), rtol=0, atol=1e-8)


def test_an_encoder_reads_events_in_order_and_the_item_of_the_same_table() -> None:
    layer, inputs = _layer(Spread(feature="bought")), _inputs()
    x_BI = _out(layer, inputs)[:, 0]
    items = _vectors(layer, "item")
    found = x_BI[:, layer.columns.slices["bought"]]
    torch.testing.assert_close(found[1], items[4] + 10 * items[7])
    torch.testing.assert_close(found[2], items[5] + 2 * items[6] + 10 * items[8])
    torch.testing.assert_close(x_BI[2, layer.columns.slices["seen"]], items[8])  # still the mean


def test_the_leaves_carry_the_gradient_of_every_lookup() -> None:
    """Sent along `Touched`, it is the gradient that autograd finds for whole tables."""
    layer, inputs = _layer(Spread(feature="bought")), _inputs()
    factors = torch.randn(3, 1, layer.output_dim, dtype=torch.float64)
    embedded = layer.embeddings(inputs)
    for vectors_SD in embedded.vectors:
        vectors_SD.requires_grad_()
    (layer(embedded, inputs) * factors).sum().backward()
    items = _vectors(layer, "item").clone().requires_grad_()
    empty_D = layer.sequences[0].get_parameter("empty_D")
    seen = torch.stack([items[rows].mean(dim=0) if rows else empty_D for rows in SEEN])
    target = items[inputs.ids_BF[:, 2]]
    bought = 10 * target[1:] + torch.stack([items[4], items[5] + 2 * items[6]])
    slices = layer.columns.slices
    twin = (seen * factors[:, 0, slices["seen"]]).sum()
    twin = twin + (bought * factors[1:, 0, slices["bought"]]).sum()
    twin = twin + (target * factors[:, 0, slices["item"]]).sum()
    (expected,) = torch.autograd.grad(twin, items)
    table, leaf, touched = layer.embeddings.each()[1], embedded.vectors[1], embedded.touched[1]
    assert leaf.grad is not None
    assert touched.weights_K is not None
    carried = torch.zeros_like(table.weight_RD)
    carried.index_add_(0, touched.rows_K, leaf.grad[touched.slots_K] * touched.weights_K[:, None])
    base = table.bases["item"]
    torch.testing.assert_close(carried[base : base + 9], expected, rtol=0, atol=1e-7)


def test_each_view_has_vectors_of_its_own() -> None:
    """View v is the layer of one view whose tables hold the v-th part of every vector."""
    wide, inputs = _layer(MeanOfEvents(), num_views=3), _inputs()
    x_BVI = _out(wide, inputs)
    assert x_BVI.shape == (3, 3, wide.output_dim)
    for view in range(3):
        narrow = _layer(MeanOfEvents())
        for own, other in zip(narrow.sequences, wide.sequences, strict=True):
            own.load_state_dict(other.state_dict())
        for own, other in zip(narrow.embeddings.each(), wide.embeddings.each(), strict=True):
            own.weight_RD.data = other.weight_RD[:, view * own.dim : (view + 1) * own.dim].clone()
        torch.testing.assert_close(x_BVI[:, view], _out(narrow, inputs)[:, 0], rtol=0, atol=1e-8)


def test_an_extractor_replaces_its_vector_at_the_end() -> None:
    layer, inputs = _layer(extractors=(Halves("image"),)), _inputs()
    inputs = Inputs(inputs.ids_BF, inputs.lists, inputs.dense_BN.double())
    x_BI = _out(layer, inputs)[:, 0]
    place = layer.columns.slices["image"]
    assert place == slice(layer.output_dim - 2, layer.output_dim)
    assert torch.equal(x_BI[:, place], inputs.dense_BN[:, [2, 4]] * torch.tensor([2.0, 1.0]))
    assert torch.equal(x_BI[:, layer.columns.slices["price"]], inputs.dense_BN[:, 5:])


def test_given_vectors_alone_are_enough() -> None:
    layout = InputLayout((), (), (), 3, dense_names=(("image", 3),))
    layer = FeatureLayer(
        layout,
        embedding_dim=4,
        num_views=1,
        sequences=(),
        interaction=NoInteraction(),
        extractors=(Halves("image"),),
    )
    inputs = Inputs(torch.zeros(2, 0, dtype=torch.int32), (), torch.ones(2, 3))
    assert _out(layer, inputs).tolist() == [[[2.0, 1.0]], [[2.0, 1.0]]]


@pytest.mark.parametrize(
    ("sequences", "extractors", "text"),
    [
        ((Mean(feature="tags"),), (), "each be for a History feature. Found 'tags'"),
        ((Mean(feature="seen"), Mean(feature="seen")), (), "Found two for 'seen'"),
        ((Mean(), MeanOfEvents()), (), "Found two for every history"),
        (
            (Mean(feature="seen"), Mean(feature="bought"), Spread()),
            (),
            "Found one for every history",
        ),
        ((), (Halves("user"),), r"extractors must each be for a Vector .* Found 'user'"),
        ((), (Halves("image"), Halves("image")), "Found two for 'image'"),
    ],
)
def test_an_encoder_or_extractor_for_nothing_is_refused(
    sequences: tuple[SequenceEncoder, ...], extractors: tuple[Extractor, ...], text: str
) -> None:
    with pytest.raises(SchemaError, match=text):
        _layer(*sequences, extractors=extractors)


def test_an_encoder_that_looks_for_the_item_needs_one_in_the_same_table() -> None:
    layout = InputLayout(
        (TableSize("item", 9, None), TableSize("words", 9, None)),
        ("item",),
        ("words",),
        0,
        id_names=("item",),
        list_names=("query",),
        histories=(0,),
    )
    with pytest.raises(SchemaError, match="shares table 'words' with history 'query'"):
        FeatureLayer(
            layout,
            embedding_dim=4,
            num_views=1,
            sequences=(Spread(),),
            interaction=NoInteraction(),
            extractors=(),
        )


def test_the_item_to_be_scored_is_the_one_of_the_item_side() -> None:
    """A user's favourite shares the table, too, and stands first."""
    layout = replace(
        LAYOUT,
        id_tables=("item", "user", "item"),
        id_names=("favourite", "user", "item"),
        items=(2,),
    )
    torch.manual_seed(0)
    layer = FeatureLayer(
        layout,
        embedding_dim=4,
        num_views=1,
        sequences=(Spread(),),
        interaction=NoInteraction(),
        extractors=(),
    ).double()
    inputs = _inputs()
    items = _vectors(layer, "item")
    x_BI = _out(layer, inputs)[:, 0]
    expected = items[4] + 10 * items[inputs.ids_BF[1, 2]]
    torch.testing.assert_close(x_BI[1, layer.columns.slices["bought"]], expected)


def test_two_candidates_for_the_item_are_refused() -> None:
    layout = replace(
        LAYOUT, id_tables=("item", "user", "item"), id_names=("favourite", "user", "item")
    )
    with pytest.raises(SchemaError, match=r"one item to be scored.*\['favourite', 'item'\]"):
        FeatureLayer(
            layout,
            embedding_dim=4,
            num_views=1,
            sequences=(Spread(),),
            interaction=NoInteraction(),
            extractors=(),
        )
