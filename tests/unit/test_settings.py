"""What is refused, and what is said, before any row is read."""

import warnings
from collections.abc import Sequence

import polars as pl
import pytest

from recsys_mtl import (
    AITM,
    DBMTL,
    DIN,
    ESCM2,
    ESMM,
    FAMO,
    Binary,
    Categorical,
    Fixed,
    GradNorm,
    History,
    MLPExtractor,
    MultiTaskRanker,
    Schema,
    Serial,
    TowerOptimizer,
    Towers,
    Vector,
)
from recsys_mtl.errors import SchemaError
from recsys_mtl.network import Heads
from recsys_mtl.schema import Task
from recsys_mtl.settings import Settings, check_settings
from recsys_mtl.training import SGD, Balance

CTR = Binary("ctr", label="click")
ALONE = (CTR, Binary("like", label="like"))
NESTED = (CTR, Binary("cvr", label="buy", within="ctr"))
NAMED = (CTR, Binary("cvr", label="buy", within="ctr", parents=["ctr"]))
CROSSED = (*NESTED, Binary("like", label="like", parents=["ctr"]))


def _check(tasks: Sequence[Task], **chosen: object) -> None:
    features = [Categorical("hour"), History("seen"), Vector("image", dim=4)]
    check_settings(Schema(context=features, tasks=tasks), Settings(**chosen))


@pytest.mark.parametrize(
    ("heads", "tasks", "text"),
    [
        (AITM(), ALONE, "Heads 'aitm' connect tasks with their parents, and no task has any"),
        (DBMTL(), ALONE, "Heads 'dbmtl' connect tasks"),
        (Serial(), ALONE, r"Name them, as in Binary\('like', ..., parents=\[...\]\), or choose"),
        (Towers(), NAMED, r"Task 'cvr' has parents \['ctr'\], which heads 'towers' do not read"),
        (Towers(), CROSSED, "Task 'like' has parents"),
        (ESMM(), CROSSED, r"Task 'like' has parents \['ctr'\], which heads 'esmm' do not read"),
        (ESCM2(), CROSSED, "choose heads 'serial', 'aitm' or 'dbmtl'"),
    ],
)
def test_links_that_change_nothing_are_said(
    heads: Heads, tasks: tuple[Task, ...], text: str
) -> None:
    with pytest.warns(UserWarning, match=text) as said:
        _check(tasks, heads=heads)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("heads", "tasks"),
    [
        *((heads, tasks) for heads in (AITM(), DBMTL(), Serial()) for tasks in (NESTED, CROSSED)),
        *((heads, tasks) for heads in (ESMM(), ESCM2()) for tasks in (NESTED, NAMED)),
        *((Towers(), tasks) for tasks in (ALONE, NESTED)),
    ],
)
def test_nothing_is_said_where_links_count_or_are_not_named(
    heads: Heads, tasks: tuple[Task, ...]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _check(tasks, heads=heads)


def test_a_fit_says_it_once() -> None:
    table = {"hour": [1, 2] * 8, "click": [0, 1] * 8, "like": [1, 0] * 8}
    schema = Schema(context=[Categorical("hour")], tasks=ALONE)
    ranker = MultiTaskRanker(schema, heads=Serial(), max_epochs=1, device="cpu", random_state=0)
    with pytest.warns(UserWarning, match="connect tasks") as said:
        ranker.fit(pl.DataFrame(table))
    assert len(said) == 1


@pytest.mark.parametrize("balance", [FAMO(), GradNorm()])
def test_balances_of_logarithms_and_ratios_refuse_losses_that_may_be_negative(
    balance: Balance,
) -> None:
    with pytest.raises(SchemaError, match=f"balance {balance.kind!r} needs positive losses"):
        _check(NESTED, heads=ESCM2("dr"), balance=balance)
    _check(NESTED, heads=ESCM2("ipw"), balance=balance)
    _check(NESTED, heads=ESCM2("dr"), balance=Fixed())


@pytest.mark.parametrize("heads", [ESMM(), ESCM2()])
@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"loss": "focal"}, "loss must be left out. Found 'focal'"),
        ({"positive_weight": 3.0}, "positive_weight must be left out. Found 3.0"),
        ({"ranking": "pairwise", "group": "page"}, "ranking must be left out. Found 'pairwise'"),
    ],
)
def test_an_outer_task_keeps_its_probability_where_heads_multiply_with_it(
    heads: Heads, asked: dict[str, object], text: str
) -> None:
    """The product needs the probability of every link of the chain; a task beside it is free."""
    click, free = Binary("ctr", label="click", **asked), Binary("like", label="like", **asked)
    cart = Binary("cart", label="cart", within="ctr")
    buy = Binary("cvr", label="buy", within="cart")
    with pytest.raises(SchemaError, match=f"task 'ctr': the heads define its loss.*{text}"):
        _check((click, cart, buy), heads=heads)
    _check((click, cart, buy), heads=Towers())
    _check((CTR, cart, buy, free), heads=heads)


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        ({"sequences": [DIN(feature="hour")]}, "sequences.*'hour'.*'seen'"),
        ({"extractors": [MLPExtractor("hour")]}, "extractors.*'hour'.*'image'"),
        ({"tower_optimizers": [TowerOptimizer("cvr", SGD(0.1))]}, "tower_optimizers.*'cvr'"),
    ],
)
def test_a_part_for_what_is_not_there_is_refused(chosen: dict[str, object], text: str) -> None:
    with pytest.raises(SchemaError, match=text):
        _check(ALONE, **chosen)
