import pytest
import torch

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.heads import Heads, TowerDims, Towers, logit_slices
from recsys_mtl.schema import Binary, Multiclass, Regression

TASKS = (
    Binary("ctr", label="click"),
    Multiclass("genre", label="genre", num_classes=3),
    Regression("rating", label="rating"),
)


def test_logits_lie_side_by_side_one_per_class_for_a_multiclass_task() -> None:
    assert logit_slices(TASKS) == (slice(0, 1), slice(1, 4), slice(4, 5))
    assert logit_slices(()) == ()


@pytest.mark.parametrize("num_rows", [0, 1, 5])
@pytest.mark.parametrize("dims", [(), (6,), (6, 2)])
def test_logits_have_one_column_per_output(dims: tuple[int, ...], num_rows: int) -> None:
    heads = Towers(dims).build(4, TASKS)
    assert heads(tuple(torch.randn(3, num_rows, 4))).logits_BZ.shape == (num_rows, 5)


@pytest.mark.parametrize("dims", [(), (16, 8)])
def test_each_tower_reads_its_own_task_only(dims: tuple[int, ...]) -> None:
    heads = Towers(dims).build(4, TASKS).double()
    tasks = tuple(torch.randn(3, 5, 4).double())
    before = heads(tasks).logits_BZ
    for number, part in enumerate(logit_slices(TASKS)):
        moved = list(tasks)
        moved[number] = torch.randn(5, 4).double()
        same = torch.ones(5, dtype=torch.bool)
        same[part] = False
        after = heads(tuple(moved)).logits_BZ
        assert torch.equal(after[:, same], before[:, same])
        assert (after[:, part] != before[:, part]).any(dim=0).all()


def test_towers_start_at_the_given_logits() -> None:
    heads = Towers((6,)).build(4, TASKS)
    bias_Z = torch.tensor([-2.0, 0.5, 0.25, -1.0, 3.0])
    heads.set_bias(bias_Z)
    logits_BZ = heads(
        tuple(torch.zeros(3, 2, 4))
    ).logits_BZ  # zeros in: nothing but the bias comes out
    torch.testing.assert_close(logits_BZ, bias_Z.expand(2, 5), rtol=0, atol=0)


def test_json_gives_the_same_towers_back() -> None:
    towers = Towers((32, 16), dropout=0.25)
    assert Heads.from_json(towers.to_json()) == towers


def test_a_task_may_have_a_tower_of_its_own_widths() -> None:
    spec = Towers((6,), by_task=[TowerDims("rating", (8, 3)), TowerDims("ctr", ())])
    towers = spec.build(4, TASKS).towers
    found = [[tuple(p.shape) for p in tower.parameters() if p.dim() == 2] for tower in towers]
    assert found == [[(1, 4)], [(6, 4), (3, 6)], [(8, 4), (3, 8), (1, 3)]]
    assert Heads.from_json(spec.to_json()) == spec
    assert hash(Heads.from_json(spec.to_json())) == hash(spec)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["ratings"], r"\['ctr', 'genre', 'rating'\]\. Found 'ratings'"),
        (["ctr", "ctr"], r".* Found 'ctr' in \['ctr', 'ctr'\]"),
    ],
)
def test_widths_of_no_task_and_of_one_twice_are_refused(names: list[str], text: str) -> None:
    with pytest.raises(SchemaError, match=rf"^Towers\.by_task must name tasks, each once: {text}"):
        Towers(by_task=[TowerDims(name, (4,)) for name in names]).build(4, TASKS)
