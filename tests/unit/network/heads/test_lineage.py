import pytest

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.heads.lineage import parent_numbers, parents_first
from recsys_mtl.schema import Binary, Regression


def _task(name: str, *parents: str) -> Binary:
    return Binary(name, label=name, parents=parents)


def test_parents_come_in_the_order_a_task_names_them() -> None:
    tasks = [_task("a"), _task("b"), _task("c", "b", "a")]
    assert parent_numbers(tasks) == ((), (), (1, 0))


def test_a_task_builds_on_the_one_it_is_within_unless_it_says_otherwise() -> None:
    ctr = Binary("ctr", label="click")
    inside = Regression("rating", label="rating", within="ctr")
    alone = Regression("rating", label="rating", within="ctr", parents=())
    assert parent_numbers([inside, ctr]) == ((1,), ())
    assert parent_numbers([alone, ctr]) == ((), ())


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        ([("a",), ("b",)], (0, 1)),
        ([("c", "b"), ("b", "a"), ("a",)], (2, 1, 0)),
        ([("d", "b", "c"), ("c", "a"), ("b", "a"), ("a",)], (3, 1, 2, 0)),
    ],
)
def test_each_task_comes_after_its_parents(
    links: list[tuple[str, ...]], expected: tuple[int, ...]
) -> None:
    assert parents_first([_task(*link) for link in links]) == expected


@pytest.mark.parametrize(
    ("links", "circle"),
    [
        ([("a", "a")], "a -> a"),
        ([("x",), ("a", "x", "b"), ("b", "c"), ("c", "a")], "a -> b -> c -> a"),
        ([("tail", "a"), ("a", "b"), ("b", "a")], "a -> b -> a"),
    ],
)
def test_a_circle_is_refused_and_shown(links: list[tuple[str, ...]], circle: str) -> None:
    with pytest.raises(SchemaError, match=rf"must not lead back.*Found {circle}: remove one"):
        parents_first([_task(*link) for link in links])


def test_an_unknown_parent_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"Task 'a': parents must be among.*Found 'click'"):
        parent_numbers([_task("a", "click")])
