"""Tables dealt out over processes against whole tables of the same seed.

Run as a script, this file is one of the processes.
"""

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys_mtl.encoding import InputLayout, TableSize
from recsys_mtl.network import Embedded, Embeddings, EmbeddingTable, Inputs, Shard
from recsys_mtl.network import embedding as embedding_file
from recsys_mtl.network import sharded as sharded_file
from recsys_mtl.network.inputs import ListInput
from recsys_mtl.training.distributed import start_processes

# two widths; ids, a bag and a history in each, and a history whose events stay apart in the wide one
SIZES = {"user": 23, "item": 9, "tag": 6, "word": 14}
LAYOUT = InputLayout(
    tables=(
        TableSize("user", 23, None),
        TableSize("item", 9, 2),
        TableSize("tag", 6, None),
        TableSize("word", 14, 2),
    ),
    id_tables=("item", "user", "tag", "item"),
    list_tables=("tag", "word", "item", "user"),
    dense_dim=0,
    histories=(2, 3),
)


def _embeddings(shard: Shard | None = None) -> Embeddings:
    torch.manual_seed(5)
    return Embeddings(LAYOUT, embedding_dim=3, events=[3], shard=shard or Shard())


def _dropping(shard: Shard | None = None) -> Embeddings:
    """Tables whose ids are dropped; weights do not follow the random state of the draws."""
    shares = {"id_dropout": (0.5,) * 4, "list_dropout": ((0.5, 1),) * 4}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        layout = replace(LAYOUT, **shares)  # type: ignore[arg-type]
        return Embeddings(layout, embedding_dim=3, events=[3], shard=shard or Shard())


def _inputs(num_rows: int, *, seed: int) -> Inputs:
    draw = torch.Generator().manual_seed(seed)
    ids = [torch.randint(SIZES[name], (num_rows, 1), generator=draw) for name in LAYOUT.id_tables]
    lists = []
    for name in LAYOUT.list_tables:
        lengths_B = torch.randint(0, 5, (num_rows,), generator=draw)
        total = int(lengths_B.sum())
        values_M = torch.randint(SIZES[name], (total,), generator=draw)
        weights_M = torch.rand(total, generator=draw)
        lists.append(ListInput(values_M, lengths_B.cumsum(0) - lengths_B, weights_M))
    return Inputs(torch.cat(ids, dim=1), tuple(lists), torch.zeros(num_rows, 0))


def _own_inputs(rank: int) -> list[Inputs]:
    """Batches of a process: of different sizes, the second without rows on process 1."""
    return [_inputs(20 + rank, seed=rank), _inputs(0 if rank == 1 else 3, seed=10 + rank)]


def _gradients(embedded: Embedded, *, seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(one.shape, generator=draw) for one in embedded.vectors]


def _trained(shard: Shard) -> list[Tensor]:
    """Every third row of the narrow matrix; of the wide one, nothing of 'tag', its last table."""
    narrow_R, wide_R = torch.arange(23) % 3 == 1, torch.arange(29) % 2 == 0
    wide_R[23:] = False
    return [narrow_R[shard.rank :: shard.world], wide_R[shard.rank :: shard.world]]


def _dense_gradient(table: EmbeddingTable, touched: Any, gradient_SD: Tensor) -> Tensor:
    """Add gradients up by looping over lookups."""
    dense_RD = torch.zeros(table.weight_RD.shape, dtype=torch.float64)
    for k, (row, slot) in enumerate(zip(touched.rows_K, touched.slots_K, strict=True)):
        factor = 1.0 if touched.weights_K is None else touched.weights_K[k]
        dense_RD[row] += factor * gradient_SD[slot]
    return dense_RD


def _main(path: str) -> None:
    processes = start_processes("cpu")
    assert processes is not None
    rank, shard = processes.rank, processes.shard
    sharded_file.GATHERED_ROWS = 4
    embeddings = _embeddings(shard)
    found: dict[str, Any] = {"first": embeddings.gather("a.")}
    found["vectors"], found["gradients"] = [], []
    for inputs in _own_inputs(rank):
        embedded = embeddings(inputs)
        with torch.inference_mode():
            again = embeddings(inputs).vectors
        found["vectors"].append((embedded.vectors, tuple(one.clone() for one in again)))
        touched, gradients = embeddings.exchange(
            embedded.touched, _gradients(embedded, seed=20 + rank)
        )
        sums = [
            _dense_gradient(*one) for one in zip(embeddings.each(), touched, gradients, strict=True)
        ]
        found["gradients"].append([sums, [one.weights_K is None for one in touched]])
    found["leaves"] = [not one.requires_grad for one in embedded.vectors]
    found["most"] = embeddings.most(3 - rank)
    embeddings.fill_untrained(_trained(shard))
    found["filled"] = embeddings.gather()
    for table in embeddings.each():
        table.reset_parameters()
    found["reset"] = embeddings.gather()
    torch.manual_seed(7 + rank)
    found["dropping"] = _dropping(shard)(_own_inputs(rank)[0]).vectors
    torch.save(found, path)


@pytest.fixture(scope="module")
def found(run_processes: Any) -> list[dict[str, Any]]:
    """What each of three processes found."""
    return run_processes(__file__, 3)


def _assert_whole(state: dict[str, Tensor], embeddings: Embeddings, prefix: str = "") -> None:
    expected = embeddings.state_dict(prefix=prefix)
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in state.items())


def test_lookups_equal_those_in_whole_tables_bit_by_bit(found: list[dict[str, Any]]) -> None:
    """Ids, bags, histories and events; the second batch of process 1 has no rows."""
    whole = _embeddings()
    for rank, own in enumerate(found):
        for inputs, (training, scoring) in zip(_own_inputs(rank), own["vectors"], strict=True):
            expected = whole(inputs).vectors
            assert len(expected) == 2
            for one, other, known in zip(training, scoring, expected, strict=True):
                assert torch.equal(one, known)
                assert torch.equal(other, known)


def test_ids_are_dropped_as_in_whole_tables(found: list[dict[str, Any]]) -> None:
    for rank, own in enumerate(found):
        torch.manual_seed(7 + rank)
        expected = _dropping()(_own_inputs(rank)[0]).vectors
        plain = _embeddings()(_own_inputs(rank)[0]).vectors
        for one, known, other in zip(own["dropping"], expected, plain, strict=True):
            assert torch.equal(one, known)
            assert not torch.equal(known, other)


def test_looked_up_vectors_are_cut_off_from_the_graph(found: list[dict[str, Any]]) -> None:
    assert all(all(own["leaves"]) for own in found)


def test_owners_get_the_gradient_of_all_processes(found: list[dict[str, Any]]) -> None:
    whole, world = _embeddings(), len(found)
    for number in range(2):
        expected = [
            torch.zeros(table.weight_RD.shape, dtype=torch.float64) for table in whole.each()
        ]
        for rank in range(world):
            embedded = whole(_own_inputs(rank)[number])
            gradients = _gradients(embedded, seed=20 + rank)
            for place, table in enumerate(whole.each()):
                touched, gradient_SD = embedded.touched[place], gradients[place]
                expected[place] += _dense_gradient(table, touched, gradient_SD)
        for rank, own in enumerate(found):
            sums, plain = own["gradients"][number]
            assert all(plain)
            for known, held in zip(expected, sums, strict=True):
                assert known.any()
                torch.testing.assert_close(held, known[rank::world], rtol=1e-5, atol=1e-6)


def test_gathered_tables_are_whole_ones_of_the_same_seed(found: list[dict[str, Any]]) -> None:
    whole = _embeddings()
    _assert_whole(found[0]["first"], whole, "a.")
    for table in whole.each():
        table.reset_parameters()
    _assert_whole(found[0]["reset"], whole)
    assert all(own[name] is None for own in found[1:] for name in ("first", "filled", "reset"))


def test_reserved_rows_are_filled_as_in_whole_tables(found: list[dict[str, Any]]) -> None:
    whole = _embeddings()
    before = [table.weight_RD.clone() for table in whole.each()]
    whole.fill_untrained(_trained(Shard()))
    for table, first, state in zip(whole.each(), before, found[0]["filled"].values(), strict=True):
        assert (table.weight_RD != first).any(dim=1).sum() >= 3
        torch.testing.assert_close(state, table.weight_RD.data, rtol=1e-6, atol=1e-9)


def test_processes_look_up_as_often_as_the_one_with_most_to_do(found: list[dict[str, Any]]) -> None:
    assert [own["most"] for own in found] == [3] * len(found)
    assert _embeddings().most(2) == 2


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("num_rows", [0, 1, 5, 6, 20])
def test_every_row_has_one_owner_and_shares_are_even(world: int, num_rows: int) -> None:
    for start in range(num_rows + 1):
        for stop in range(start, num_rows + 1):
            for rank in range(world):
                shard = Shard(rank, world)
                held = torch.arange(num_rows)[rank::world]
                inside = (held >= start) & (held < stop)
                assert torch.equal(held[shard.places(start, stop)], held[inside])
                run = torch.arange(start, stop)
                assert torch.equal(shard.own(run, start), held[inside])
                assert shard.size(num_rows) == len(held) <= -(-num_rows // world)


@pytest.mark.parametrize("num_rows", [1, 5, 64, 64 + 15, 64 + 17, 300])
def test_shares_begin_with_the_values_of_one_draw_for_all_rows(
    num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of 64 rows, with and without a rest that torch would fill in another way."""
    monkeypatch.setattr(embedding_file, "DRAWN_ROWS", 64)
    torch.manual_seed(3)
    expected = torch.nn.init.normal_(torch.empty(num_rows, 3), std=0.01)
    state = torch.get_rng_state()
    for world in (1, 2, 3):
        for rank in range(world):
            torch.manual_seed(3)
            shard = Shard(rank, world)
            table = EmbeddingTable(["a"], [num_rows], [(0, "a")], [], 3, shard=shard)
            assert torch.equal(table.weight_RD, expected[rank::world])
            assert torch.equal(torch.get_rng_state(), state)


if __name__ == "__main__":
    _main(sys.argv[1])
