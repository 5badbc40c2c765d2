"""Scores from kept summands against the plain network on the same rows, widened."""

import numpy as np
import polars as pl
import pytest
import torch

from recsys_mtl.encoding import Encoder
from recsys_mtl.network import (
    CGC,
    DIN,
    PLE,
    STEM,
    AdaTT,
    CrossNetwork,
    Factored,
    HoME,
    MMoE,
    MultiTaskModel,
    NoInteraction,
    OMoE,
    RowTensors,
    SharedBottom,
    Towers,
    predict_logits,
)
from recsys_mtl.reading import scan
from recsys_mtl.schema import Bag, Binary, Categorical, History, Multiclass, Numeric, Schema, Side

PAIRS, USERS, ITEMS = 5000, 40, 30


@pytest.fixture(scope="module")
def tables():
    chance = np.random.default_rng(0)
    users = pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in range(USERS)],
            "city": [f"c{n % 7}" for n in range(USERS)],
            "age": chance.normal(size=USERS),
            "seen": [list(range(n % 5)) for n in range(USERS)],
        }
    )
    items = pl.DataFrame(
        {"item_id": range(ITEMS), "tags": [[f"t{n % 3}", f"t{n % 5}"] for n in range(ITEMS)]}
    )
    pairs = pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in chance.integers(USERS, size=PAIRS)],
            "item_id": chance.integers(ITEMS, size=PAIRS),
            "hour": chance.integers(24, size=PAIRS),
            "click": chance.integers(2, size=PAIRS),
            "like": chance.integers(3, size=PAIRS),
        }
    )
    return pairs, users, items


def _schema(*, context: bool) -> Schema:
    return Schema(
        user=Side(
            "user_id",
            features=[
                Categorical("user_id"),
                Categorical("city", embedding_dim=12),
                Numeric("age"),
                History("seen", table="item_id"),
            ],
        ),
        item=Side("item_id", features=[Categorical("item_id"), Bag("tags")]),
        context=[Categorical("hour"), Numeric("hours", column="hour")] if context else [],
        tasks=[Binary("ctr", label="click"), Multiclass("like", label="like", num_classes=3)],
    )


PARTS = [["user_id", "city", "age", "seen"], ["item_id", "tags"], ["hour", "hours"]]


class _Case:
    def __init__(self, tables, sharing, *, context=True, sequences=(), interaction=None) -> None:
        pairs, users, items = tables
        schema = _schema(context=context)
        encoder = Encoder(schema)
        rows = scan(pairs, users=users, items=items)
        encoder.fit(rows)
        self.batch = encoder.encode(rows, labels="none")
        self.rows = lambda table: encoder.encode(
            scan(table, users=users, items=items), labels="none"
        )
        torch.manual_seed(1)
        self.model = MultiTaskModel(
            encoder.layout,
            schema.tasks,
            sharing=sharing,
            heads=Towers((8,)),
            embedding_dim=16,
            sequences=sequences,
            interaction=interaction or NoInteraction(),
        ).eval()
        for table in self.model.embeddings.each():
            torch.nn.init.normal_(table.weight_RD)
        for name, parameter in self.model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
        self.parts = PARTS if context else PARTS[:2]

    def plain(self, batch=None):
        flat = (self.batch if batch is None else batch).flat()
        return predict_logits(self.model, RowTensors(flat, torch.device("cpu")))

    def factored(self, table_bytes=1 << 20):
        return Factored(self.model, self.parts, table_bytes=table_bytes)


def _uses_tables(factored: Factored) -> bool:
    return bool(factored._tables)


def _assert_close(found, expected):
    torch.testing.assert_close(
        found, expected, rtol=1e-5, atol=float(expected.abs().sum() > 0) * 4e-6
    )


LINEAR = [
    SharedBottom((24, 12)),
    MMoE(3, expert_dims=(16, 8)),
    MMoE(2, expert_dims=(8,), normalize_experts=True),
    OMoE(3, expert_dims=(16,)),
    PLE(2, expert_dims=(8,)),
    PLE(2, num_shared_experts=0, expert_dims=(8,)),
    PLE(1, num_task_experts=0, expert_dims=(8,)),
    CGC(expert_dims=(16, 8)),
]


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("sharing", LINEAR, ids=lambda one: one.kind)
def test_logits_equal_those_of_the_plain_network(tables, sharing, context):
    case = _Case(tables, sharing, context=context)
    factored = case.factored()
    _assert_close(factored.logits(case.batch), case.plain())
    assert _uses_tables(factored)


@pytest.mark.parametrize("sharing", LINEAR, ids=lambda one: one.kind)
def test_sums_differ_by_rounding_alone(tables, sharing):
    """In float64 the order of sums shows far below what float32 can tell."""
    case = _Case(tables, sharing)
    wide = case.model.double()
    inputs = RowTensors(case.batch.flat(), torch.device("cpu"))
    features = wide.features.forward
    wide.features.forward = lambda *given: features(*given).double()
    expected = predict_logits(wide, inputs)
    found = case.factored().logits(case.batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("sharing", "settings"),
    [
        (HoME(), {}),
        (STEM(), {}),
        (AdaTT(expert_dims=(8,)), {}),
        (SharedBottom(()), {}),
        (MMoE(2, expert_dims=(8,)), {"interaction": CrossNetwork()}),
        (MMoE(2, expert_dims=(8,)), {"sequences": [DIN(feature="seen")]}),
    ],
    ids=["home", "stem", "adatt", "empty_bottom", "cross", "din"],
)
def test_models_whose_first_operation_is_not_linear_take_the_plain_path(tables, sharing, settings):
    case = _Case(tables, sharing, **settings)
    factored = case.factored()
    plain = predict_logits(case.model, RowTensors(case.batch, torch.device("cpu")))
    assert torch.equal(factored.logits(case.batch), plain)
    assert not _uses_tables(factored)


def test_a_user_is_computed_once_in_a_run(tables):
    case = _Case(tables, MMoE(2, expert_dims=(8,)))
    read = []
    take = Factored._input

    def counted(self, rows, start):
        read.append(rows.num_rows)
        return take(self, rows, start)

    factored = case.factored()
    parts = [case.batch.cut([(0, 2500)]), case.batch.cut([(2500, PAIRS)])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Factored, "_input", counted)
        found = [factored.logits(part) for part in parts]
    assert read == [USERS, ITEMS, *[2500] * 4]  # two blocks of a batch each
    _assert_close(torch.cat(found), case.plain())


def test_bits_depend_on_the_batch_alone_in_a_run_of_known_length(tables, monkeypatch):
    """Whatever came before: a run that goes on after a break writes the same bytes."""
    monkeypatch.setattr("recsys_mtl.network.factored.FILL_ROWS", 8)
    case = _Case(tables, MMoE(2, expert_dims=(64, 8)))
    first, second = case.batch.cut([(0, 300)]), case.batch.cut([(300, 700)])
    run = Factored(case.model, case.parts, num_pairs=PAIRS)
    run.logits(first)
    late = Factored(case.model, case.parts, num_pairs=PAIRS)
    assert torch.equal(run.logits(second), late.logits(second))
    assert _uses_tables(late)


def test_tables_that_do_not_fit_hold_what_a_batch_refers_to(tables):
    pairs = tables[0].filter(pl.col("user_id").is_in(["u1", "u2", "u3"]))
    case = _Case(tables, MMoE(2, expert_dims=(8,)))
    batch = case.rows(pairs)
    outputs = 2 * 8 + 2 * 2
    factored = case.factored(table_bytes=34 * outputs * 4)
    _assert_close(factored.logits(batch), case.plain(batch))
    assert [len(table) for table in factored._tables] == [33] * 3
    small = case.factored(table_bytes=5 * outputs * 4)
    _assert_close(small.logits(batch), case.plain(batch))
    assert [len(table) for table in small._tables] == [3] * 3


def test_few_pairs_of_many_users_take_the_plain_path_until_they_are_many(tables):
    case = _Case(tables, SharedBottom((8,)))
    once = case.rows(tables[0].unique("user_id", maintain_order=True).head(20))
    factored = case.factored()
    flat = predict_logits(case.model, RowTensors(once, torch.device("cpu")))
    assert torch.equal(factored.logits(once), flat)
    assert not _uses_tables(factored)


def test_keys_that_a_side_table_lacks_are_scored_alike(tables):
    case = _Case(tables, CGC(expert_dims=(8,)))
    strange = tables[0].with_columns(
        pl.when(pl.int_range(pl.len()) % 100 == 0)
        .then(pl.lit("nobody"))
        .otherwise("user_id")
        .alias("user_id")
    )
    batch = case.rows(strange)
    assert batch.absent["user"] == 50
    _assert_close(case.factored().logits(batch), case.plain(batch))


@pytest.mark.parametrize("num_rows", [0, 1])
def test_no_row_and_one_row_are_scored(tables, num_rows):
    case = _Case(tables, SharedBottom((8,)))
    batch = case.rows(tables[0].head(num_rows))
    _assert_close(case.factored().logits(batch), case.plain(batch))


def test_scores_are_those_of_the_outputs(tables):
    case = _Case(tables, MMoE(2, expert_dims=(8,)))
    ctr, like = case.factored().score(case.batch)
    logits = case.plain()
    torch.testing.assert_close(ctr, torch.sigmoid(logits[:, 0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(like, torch.softmax(logits[:, 1:], 1), rtol=0, atol=1e-6)
