"""Pooled vectors against a loop over rows, features and ids; all in float64."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys_mtl.encoding import NUM_RESERVED, InputLayout, TableSize
from recsys_mtl.network import Embeddings, EmbeddingTable, Inputs
from recsys_mtl.network.inputs import ListInput

# two widths; 'item' and 'tag' are shared by a one-id column and a list column
SIZES = {"user": 7, "item": 9, "tag": 6, "word": 5}
WIDTHS = {"user": 3, "item": 2, "tag": 3, "word": 2}
LAYOUT = InputLayout(
    tables=(
        TableSize("user", 7, None),
        TableSize("item", 9, 2),
        TableSize("tag", 6, None),
        TableSize("word", 5, 2),
    ),
    id_tables=("item", "user", "tag", "item"),
    list_tables=("tag", "word", "item"),
    dense_dim=0,
)


def _embeddings() -> Embeddings:
    return Embeddings(LAYOUT, embedding_dim=3).double()


def _inputs(num_rows: int, *, seed: int = 0) -> Inputs:
    """Draw ids and weights; about every third list is empty."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(SIZES[name], size=num_rows) for name in LAYOUT.id_tables]
    lists = []
    for name in LAYOUT.list_tables:
        lengths = rng.integers(0, 4, size=num_rows) * (rng.random(num_rows) > 0.2)
        ends = np.cumsum(lengths)
        total = int(lengths.sum())
        lists.append(
            ListInput(
                torch.from_numpy(rng.integers(SIZES[name], size=total)),
                torch.from_numpy((ends - lengths).astype(np.int64)),
                torch.from_numpy(rng.random(total).astype(np.float32)),
            )
        )
    dense_BN = torch.zeros(num_rows, 0)
    return Inputs(torch.from_numpy(np.stack(ids, axis=1)), tuple(lists), dense_BN)


def _pooled(embeddings: Embeddings, inputs: Inputs) -> list[torch.Tensor]:
    found = embeddings(inputs).vectors
    tables = embeddings.each()
    return [table.split(one, inputs)[0] for table, one in zip(tables, found, strict=True)]


def _vector(embeddings: Embeddings, name: str, row: int) -> np.ndarray:
    table = next(table for table in embeddings.each() if name in table.bases)
    return table.weight_RD[table.bases[name] + row].numpy()


def _by_loop(embeddings: Embeddings, inputs: Inputs, dim: int) -> np.ndarray:
    """Pool by looking up one id at a time: one-id columns first, then lists."""
    rows = []
    for b in range(len(inputs)):
        vectors = [
            _vector(embeddings, name, int(inputs.ids_BF[b, f]))
            for f, name in enumerate(LAYOUT.id_tables)
            if WIDTHS[name] == dim
        ]
        for name, found in zip(LAYOUT.list_tables, inputs.lists, strict=True):
            if WIDTHS[name] != dim:
                continue
            ends = [*found.offsets_B.tolist(), found.values_M.numel()]
            pooled = np.zeros(dim)
            for m in range(ends[b], ends[b + 1]):
                vector = _vector(embeddings, name, int(found.values_M[m]))
                pooled += float(found.weights_M[m]) * vector
            vectors.append(pooled)
        rows.append(vectors)
    return np.array(rows)


@pytest.mark.parametrize("num_rows", [0, 1, 2, 33])
def test_pooled_vectors_equal_a_loop_over_single_ids(num_rows: int) -> None:
    embeddings, inputs = _embeddings(), _inputs(num_rows)
    found = _pooled(embeddings, inputs)
    assert [pooled.shape for pooled in found] == [(num_rows, 4, 2), (num_rows, 3, 3)]
    for pooled_BCD, dim in zip(found, (2, 3), strict=True):
        expected = _by_loop(embeddings, inputs, dim)
        assert num_rows == 0 or expected.any()
        np.testing.assert_allclose(
            pooled_BCD.numpy(), expected.reshape(pooled_BCD.shape), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("num_rows", [0, 1, 33])
def test_touched_rows_rebuild_the_pooled_vectors(num_rows: int) -> None:
    """What training sends back along `Touched` is what the lookup took along it."""
    embeddings = _embeddings()
    embedded = embeddings(_inputs(num_rows))
    for table, vectors_SD, touched in zip(
        embeddings.each(), embedded.vectors, embedded.touched, strict=True
    ):
        rebuilt = np.zeros((num_rows * table.num_lookups, table.dim))
        for k in range(touched.rows_K.numel()):
            factor = 1.0 if touched.weights_K is None else float(touched.weights_K[k])
            rebuilt[touched.slots_K[k]] += factor * table.weight_RD[touched.rows_K[k]].numpy()
        np.testing.assert_allclose(rebuilt, vectors_SD.numpy(), rtol=0, atol=1e-12)


def test_one_id_columns_alone_are_touched_with_factor_one() -> None:
    layout = InputLayout((TableSize("a", 4, None), TableSize("b", 5, None)), ("a", "b"), (), 0)
    embeddings = Embeddings(layout, embedding_dim=2)
    inputs = Inputs(torch.tensor([[3, 0], [1, 4], [3, 4]]), (), torch.zeros(3, 0))
    embedded = embeddings(inputs)
    (touched,) = embedded.touched
    assert touched.weights_K is None
    weight_RD = embeddings.each()[0].weight_RD
    torch.testing.assert_close(
        embedded.vectors[0][touched.slots_K], weight_RD[touched.rows_K], rtol=0, atol=0
    )
    assert touched.rows_K.tolist() == [3, 4 + 0, 1, 4 + 4, 3, 4 + 4]


def test_lists_alone_need_no_one_id_column() -> None:
    layout = InputLayout((TableSize("words", 6, None),), (), ("words",), 0)
    embeddings = Embeddings(layout, embedding_dim=2).double()
    words = ListInput(torch.tensor([4, 5, 4]), torch.tensor([0, 0]), torch.tensor([0.5, 0.25, 1.0]))
    empty_ids = torch.zeros(2, 0, dtype=torch.int64)
    embedded = embeddings(Inputs(empty_ids, (words,), torch.zeros(2, 0)))
    weight_RD = embeddings.each()[0].weight_RD
    assert not embedded.vectors[0][0].any()
    torch.testing.assert_close(
        embedded.vectors[0][1], 1.5 * weight_RD[4] + 0.25 * weight_RD[5], rtol=0, atol=1e-12
    )
    assert embedded.touched[0].slots_K.tolist() == [1, 1, 1]


def test_empty_lists_give_zeros_and_touch_nothing() -> None:
    inputs = _inputs(5)
    nothing = ListInput(
        torch.zeros(0, dtype=torch.int64), torch.zeros(5, dtype=torch.int64), torch.zeros(0)
    )
    embeddings, empty = _embeddings(), Inputs(inputs.ids_BF, (nothing,) * 3, inputs.dense_BN)
    narrow, wide = _pooled(embeddings, empty)
    assert not narrow[:, 2:].any()  # two item columns, then words and items
    assert not wide[:, 2:].any()  # user and tag columns, then tags
    assert narrow[:, :2].all()
    touched = embeddings(empty).touched
    assert [found.rows_K.numel() for found in touched] == [5 * 2, 5 * 2]


def test_features_of_one_table_share_its_vectors() -> None:
    embeddings, inputs = _embeddings(), _inputs(8)
    table = embeddings.each()[0]
    before = _pooled(embeddings, inputs)[0]
    assert sorted(table.bases) == ["item", "word"]
    with torch.no_grad():
        table.weight_RD[table.bases["item"] : table.bases["item"] + SIZES["item"]] += 1
    moved = (_pooled(embeddings, inputs)[0] - before).mean(dim=(0, 2))
    assert (moved[[0, 1]] - 1).abs().max() < 1e-12  # both item columns
    assert moved[2] == 0  # words lie in the same matrix, not in the same table
    assert moved[3] > 0.1  # the list of items


def test_a_row_does_not_depend_on_its_batch() -> None:
    """Exactly: a lookup adds the same numbers in the same order whatever stands beside it."""
    embeddings, inputs = _embeddings(), _inputs(9)
    whole = _pooled(embeddings, inputs)
    for row in range(9):
        lists = []
        for found in inputs.lists:
            ends = [*found.offsets_B.tolist(), found.values_M.numel()]
            own = slice(ends[row], ends[row + 1])
            start = torch.zeros(1, dtype=torch.int64)
            lists.append(ListInput(found.values_M[own], start, found.weights_M[own]))
        one = Inputs(inputs.ids_BF[row : row + 1], tuple(lists), inputs.dense_BN[row : row + 1])
        for alone, together in zip(_pooled(embeddings, one), whole, strict=True):
            assert torch.equal(alone[0], together[row])


def test_tables_start_small_and_differ_by_row() -> None:
    table = EmbeddingTable(["a"], [2000], [(0, "a")], [], 16)
    assert abs(float(table.weight_RD.std()) - 0.01) < 2e-4
    assert abs(float(table.weight_RD.mean())) < 2e-4
    assert not table.weight_RD.requires_grad
    before = table.weight_RD.clone()
    table.reset_parameters()
    assert (table.weight_RD != before).all()


def test_a_copy_looks_up_its_own_weights() -> None:
    embeddings, inputs = _embeddings(), _inputs(3)
    twin = copy.deepcopy(embeddings)
    torch.nn.init.zeros_(twin.each()[0].weight_RD)
    assert not _pooled(twin, inputs)[0].any()
    assert _pooled(embeddings, inputs)[0].any()


def test_untrained_reserved_rows_become_the_mean_of_trained_rows() -> None:
    table = EmbeddingTable(["a", "b"], [6, 5], [(0, "a"), (1, "b")], [], 2)
    table.weight_RD.data = torch.arange(22, dtype=torch.float32).reshape(11, 2)
    before = table.weight_RD.clone()
    trained_R = torch.zeros(11, dtype=torch.bool)
    trained_R[[1, 3, 5]] = True  # of table 'a': the second reserved row and two ids; of 'b': none
    table.fill_untrained(trained_R)
    mean_D = (before[3] + before[5]) / 2
    assert NUM_RESERVED == 3
    assert torch.equal(table.weight_RD[0], mean_D)
    assert torch.equal(table.weight_RD[1], before[1])
    assert torch.equal(table.weight_RD[2], mean_D)
    assert torch.equal(table.weight_RD[3:6], before[3:6])
    assert not table.weight_RD[6:9].any()  # nothing in 'b' was trained: zeros
    assert torch.equal(table.weight_RD[9:], before[9:])


def test_events_stay_apart_and_are_touched_with_factor_one() -> None:
    """The first list column is a history whose events are wanted one by one."""
    layout = replace(LAYOUT, histories=(0,))
    embeddings = Embeddings(layout, embedding_dim=3, events=[0]).double()
    inputs = _inputs(9)
    embedded = embeddings(inputs)
    wide = embeddings.each()[1]
    pooled_BCD, (events_MD,) = wide.split(embedded.vectors[1], inputs)
    assert pooled_BCD.shape == (9, 2, 3)  # user and tag; the list of tags is not among them
    values = inputs.lists[0].values_M
    assert torch.equal(events_MD, wide.weight_RD[values + wide.bases["tag"]])
    touched = embedded.touched[1]
    last = slice(-values.numel(), None)
    assert torch.equal(touched.rows_K[last], values + wide.bases["tag"])
    assert touched.slots_K[last].tolist() == list(range(18, 18 + values.numel()))
    assert touched.weights_K is not None
    assert (touched.weights_K == 1).all()


def test_views_widen_every_table() -> None:
    embeddings = Embeddings(LAYOUT, embedding_dim=3, num_views=4)
    assert [table.dim for table in embeddings.each()] == [8, 12]


def test_list_lengths_are_the_gaps_between_offsets() -> None:
    found = ListInput(torch.arange(5), torch.tensor([0, 0, 3]), torch.ones(5))
    assert found.lengths_B.tolist() == [0, 3, 2]
    none = torch.zeros(0, dtype=torch.int64)
    assert ListInput(none, none, torch.zeros(0)).lengths_B.tolist() == []
