"""Ids replaced by the unknown one: how many, which, and where never."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from recsys_mtl.encoding import NUM_RESERVED, UNKNOWN_ROW, Encoder, InputLayout, TableSize
from recsys_mtl.network import Embeddings, Inputs
from recsys_mtl.network.id_dropout import IdDropout
from recsys_mtl.network.inputs import ListInput
from recsys_mtl.schema import Bag, Binary, Categorical, History, Numeric, Schema
from recsys_mtl.training import RowWiseAdagrad

LAYOUT = InputLayout(
    tables=(TableSize("a", 9, None), TableSize("b", 9, None)),
    id_tables=("a", "b", "a"),
    list_tables=("a", "b"),
    dense_dim=0,
    id_dropout=(0.3, 0.0, 0.8),
    list_dropout=((0.0, 1), (0.4, 2)),
)
ROWS = 20_000


def _inputs(num_rows: int = ROWS) -> Inputs:
    ids_BF = torch.arange(num_rows)[:, None] % 9 + torch.zeros(3, dtype=torch.int64)
    values_M = torch.arange(4 * num_rows) % 9
    offsets_B = torch.arange(num_rows) * 4
    found = ListInput(values_M, offsets_B, torch.ones(4 * num_rows))
    return Inputs(ids_BF, (found, found), torch.zeros(num_rows, 0))


def _share(before: torch.Tensor, after: torch.Tensor) -> tuple[float, float]:
    """Return the share of known ids that were replaced, and its standard error times root share."""
    known = before >= NUM_RESERVED
    assert torch.equal(after[~known], before[~known])
    changed = after[known] != before[known]
    assert (after[known][changed] == UNKNOWN_ROW).all()
    return float(changed.float().mean()), int(known.sum()) ** -0.5


def test_each_feature_loses_its_own_share_within_four_standard_errors() -> None:
    inputs = _inputs()
    dropped = IdDropout(LAYOUT).train()(inputs)
    pairs = [
        (share, inputs.ids_BF[:, n], dropped.ids_BF[:, n])
        for n, share in enumerate(LAYOUT.id_dropout)
    ]
    pairs.append((0.4, inputs.lists[1].values_M[::2], dropped.lists[1].values_M[::2]))
    for share, before, after in pairs:
        found, unit = _share(before, after)
        assert abs(found - share) <= 4 * unit * (share * (1 - share)) ** 0.5
    assert dropped.lists[0] is inputs.lists[0]
    assert dropped.lists[1].weights_M is inputs.lists[1].weights_M


def test_the_rows_that_one_id_looks_up_go_together() -> None:
    inputs = _inputs()
    changed = IdDropout(LAYOUT).train()(inputs).lists[1].values_M != inputs.lists[1].values_M
    known = (inputs.lists[1].values_M >= NUM_RESERVED).view(-1, 2).all(dim=1)
    first, second = changed.view(-1, 2)[known].T
    assert torch.equal(first, second)
    assert first.any()


def test_evaluation_replaces_none_and_draws_nothing() -> None:
    inputs, state = _inputs(), torch.get_rng_state()
    assert IdDropout(LAYOUT).eval()(inputs) is inputs
    plain = replace(LAYOUT, id_dropout=(0.0,) * 3, list_dropout=((0.0, 1), (0.0, 2)))
    assert IdDropout(plain).train()(inputs) is inputs
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_random_state_drops_the_same_ids() -> None:
    dropout, inputs = IdDropout(LAYOUT).train(), _inputs(50)
    state = torch.get_rng_state()
    first, other = dropout(inputs), dropout(inputs)
    torch.set_rng_state(state)
    assert torch.equal(dropout(inputs).ids_BF, first.ids_BF)
    assert not torch.equal(other.ids_BF, first.ids_BF)


def test_a_batch_of_no_rows_is_left_alone() -> None:
    assert len(IdDropout(LAYOUT).train()(_inputs(0))) == 0


def test_the_unknown_row_is_trained_in_place_of_dropped_ones() -> None:
    layout = InputLayout((TableSize("a", 9, None),), ("a",), (), 0, id_dropout=(0.5,))
    embeddings = Embeddings(layout, embedding_dim=2).train()
    optimizer = RowWiseAdagrad(0.1).build(embeddings.each())
    inputs = Inputs(torch.full((100, 1), 5), (), torch.zeros(100, 0))
    embedded = embeddings(inputs)
    assert sorted(set(embedded.touched[0].rows_K.tolist())) == [UNKNOWN_ROW, 5]
    before = embeddings.each()[0].weight_RD.clone()
    optimizer.step(embedded.touched, [torch.ones_like(embedded.vectors[0])])
    moved = (embeddings.each()[0].weight_RD != before).any(dim=1)
    assert moved.nonzero()[:, 0].tolist() == [UNKNOWN_ROW, 5]
    assert optimizer.trained(0).nonzero()[:, 0].tolist() == [UNKNOWN_ROW, 5]


def test_the_schema_says_what_each_feature_loses() -> None:
    lists = pl.Series([[1, 2], [3], []], dtype=pl.List(pl.Int64))
    table = pl.DataFrame({"a": [1, 2, 3], "x": [0.5, 1, 2], "click": [0, 1, 1]})
    table = table.with_columns(tags=lists, seen=lists)
    schema = Schema(
        context=[
            Categorical("a", dropout=0.25),
            Numeric("x"),
            Bag("tags", num_hashes=2, dropout=0.5),
            History("seen"),
            Categorical("twice", column="a", num_hashes=2, dropout=0.1),
        ],
        tasks=[Binary("ctr", label="click")],
    )
    layout = Encoder(schema).fit(table).layout
    assert layout.id_dropout == (0.25, 0.0)
    assert layout.list_dropout == ((0.5, 2), (0.0, 1), (0.1, 2))
    assert Schema.from_json(schema.to_json()) == schema


@pytest.mark.parametrize("share", [-0.1, 1.0, np.nan])
def test_a_share_outside_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="dropout"):
        Categorical("a", dropout=share)
