"""Weights that move into another network: it scores as the old one did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from recsys_mtl.encoding import Encoder, row_origins
from recsys_mtl.errors import SchemaError
from recsys_mtl.network import (
    CGC,
    DIN,
    FM,
    GRU,
    PLE,
    STEM,
    AdaTT,
    CrossNetwork,
    CrossStitch,
    Heads,
    HoME,
    MLPExtractor,
    MMoE,
    OMoE,
    PEPNet,
    Plan,
    RowTensors,
    Serial,
    SharedBottom,
    Sharing,
    Towers,
    Transplant,
    predict_logits,
)
from recsys_mtl.schema import (
    Bag,
    Binary,
    Categorical,
    Feature,
    History,
    Multiclass,
    Numeric,
    Regression,
    Schema,
    Task,
    Vector,
)
from recsys_mtl.settings import ModelConfig, build_network
from recsys_mtl.spec import Spec

TASKS = (Binary("ctr", label="click"), Regression("rating", label="stars"))
LIKE = Binary("like", label="click")
FEATURES = (
    Categorical("item", embedding_dim=4),
    Categorical("city"),
    Bag("tags"),
    Numeric("age"),
    Numeric("price", scaling="log"),
)
ADDED = (
    Categorical("hour"),
    Categorical("page", embedding_dim=6),
    Numeric("size", scaling="standard"),
    History("seen", table="item", embedding_dim=4),
)
STRUCTURES: tuple[Sharing, ...] = (
    SharedBottom((6,)),
    SharedBottom(()),
    OMoE(2, expert_dims=(6,)),
    MMoE(2, expert_dims=(6, 5)),
    CGC(expert_dims=(6,)),
    PLE(1, expert_dims=(6,)),
    PLE(2, expert_dims=(6,)),
    CrossStitch((6, 5)),
    STEM(expert_dims=(6,)),
    AdaTT(expert_dims=(6,)),
    HoME(expert_dims=(6,)),
    PEPNet((6,)),
)


def _others(family: type[Spec], listed: Sequence[Spec]) -> list[Any]:
    """Return the package's other kinds of a family, as they are by default."""
    known = {one.kind for one in listed}
    found = {kind: cls for kind, cls in Spec._kinds.items() if issubclass(cls, family)}
    own = {kind: cls for kind, cls in found.items() if cls.__module__.startswith("recsys_mtl.")}
    return [own[kind]() for kind in sorted(own.keys() - known)]


EVERY_SHARING = [*STRUCTURES, *_others(Sharing, STRUCTURES)]


def _table(num_rows: int = 50, *, ids: int = 9, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)

    def lists() -> list[list[int]]:
        return [rng.integers(0, ids, rng.integers(0, 4)).tolist() for _ in range(num_rows)]

    return pl.DataFrame(
        {
            "item": rng.integers(0, ids, num_rows),
            "city": rng.integers(0, ids, num_rows),
            "tags": lists(),
            "age": rng.normal(size=num_rows),
            "price": rng.normal(size=num_rows),
            "hour": rng.integers(0, 24, num_rows),
            "page": rng.integers(0, 3, num_rows),
            "size": rng.normal(size=num_rows),
            "seen": lists(),
            "image": rng.normal(size=(num_rows, 3)).tolist(),
            "click": rng.integers(0, 2, num_rows),
            "bought": rng.integers(0, 2, num_rows),
            "stars": rng.normal(size=num_rows),
        },
        schema_overrides={"tags": pl.List(pl.Int64), "seen": pl.List(pl.Int64)},
    )


class _Made:
    """A network with random weights, all different from what a fresh one has."""

    def __init__(
        self,
        table: pl.DataFrame,
        features: Sequence[Feature] = FEATURES,
        tasks: Sequence[Task] = TASKS,
        *,
        known: _Made | None = None,
        **config: Any,
    ) -> None:
        schema = Schema(context=features, tasks=tasks)
        self.config = ModelConfig(**{"embedding_dim": 3, "heads": Towers((5,))} | config)
        self.encoder = Encoder(schema)
        batch = self.encoder.fit_encode(table, known=None if known is None else known.encoder)
        self.model = build_network(self.encoder, self.config)
        self.model.learn_outputs(batch)
        for parameter in self.model.parameters():
            inputs = parameter.shape[-1] if parameter.requires_grad else 4
            torch.nn.init.normal_(parameter, std=inputs**-0.5)

    def plan(self) -> Plan:
        config = self.config
        parts = (config.interaction, config.sharing, config.heads, config.extractors)
        return Plan(self.model, self.encoder.layout, *parts)

    def logits(self, table: pl.DataFrame) -> Tensor:
        rows = RowTensors(self.encoder.encode(table), torch.device("cpu"))
        return predict_logits(self.model, rows)


def _transplant(old: _Made, new: _Made) -> Transplant:
    made = Transplant(old.plan(), new.plan(), row_origins(new.encoder.learned, old.encoder.learned))
    made.apply()
    return made


@pytest.mark.parametrize("sharing", EVERY_SHARING, ids=str)
def test_a_network_whose_tables_grew_scores_known_rows_bit_for_bit(sharing: Sharing) -> None:
    day1, day2 = _table(), _table(ids=30, seed=1)
    old = _Made(day1, sharing=sharing)
    new = _Made(day2, known=old, sharing=sharing)
    assert not torch.equal(new.logits(day1), old.logits(day1))
    _transplant(old, new)
    assert torch.equal(new.logits(day1), old.logits(day1))
    sizes = [[table.num_rows for table in made.encoder.layout.tables] for made in (old, new)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("interaction", [None, CrossNetwork(2), CrossNetwork(1, rank=2)], ids=str)
@pytest.mark.parametrize("sharing", EVERY_SHARING, ids=str)
def test_a_network_with_more_features_scores_as_before(sharing: Sharing, interaction: Any) -> None:
    """The new features stand among the old ones, so that all columns move."""
    table = _table()
    config = {"sharing": sharing} | ({} if interaction is None else {"interaction": interaction})
    old = _Made(table, **config)
    new = _Made(table, [*ADDED[:2], *FEATURES[::-1], *ADDED[2:]], known=old, **config)
    _transplant(old, new)
    torch.testing.assert_close(new.logits(table), old.logits(table), rtol=1e-6, atol=1e-6)


def test_new_columns_are_read_once_training_moves_them() -> None:
    """Weights of new columns start at 0, but what they read does not: so they have a gradient."""
    table = _table()
    old = _Made(table, sharing=SharedBottom((6,)))
    new = _Made(table, [*FEATURES, ADDED[0]], known=old, sharing=SharedBottom((6,)))
    _transplant(old, new)
    first = new.model.sharing.get_parameter("bottom.0.weight")
    place = new.model.features.columns.slices["hour"]
    assert not first[:, place].any()
    rows = RowTensors(new.encoder.encode(table), torch.device("cpu"))
    new.model(rows.take(torch.arange(50))).logits_BZ.square().sum().backward()
    assert first.grad is not None
    assert first.grad[:, place].any()


def test_a_feature_that_is_gone_takes_its_columns_along() -> None:
    """The same as if its numbers had been 0."""
    table = _table()
    old = _Made(table, sharing=MMoE(2, expert_dims=(6,)))
    new = _Made(table, FEATURES[1:], known=old, sharing=MMoE(2, expert_dims=(6,)))
    _transplant(old, new)
    with torch.no_grad():
        for matrix in old.model.embeddings.each():
            if "item" in matrix.bases:
                matrix.weight_RD.zero_()
    torch.testing.assert_close(new.logits(table), old.logits(table), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "sharing",
    [
        one
        for one in STRUCTURES
        if not isinstance(one, STEM | AdaTT | CrossStitch | PEPNet)
        and one != PLE(2, expert_dims=(6,))
    ],
    ids=str,
)
def test_known_tasks_keep_their_towers_and_gates_whatever_comes_and_goes(sharing: Sharing) -> None:
    table = _table()
    old = _Made(table, tasks=(*TASKS, LIKE), sharing=sharing)
    genre = Multiclass("genre", label="click", num_classes=2)
    new = _Made(table, tasks=(LIKE, genre, TASKS[1]), known=old, sharing=sharing)
    _transplant(old, new)
    before, after = old.logits(table), new.logits(table)
    torch.testing.assert_close(after[:, 0], before[:, 2], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(after[:, 3], before[:, 1], rtol=1e-6, atol=1e-6)
    assert new.model.outputs.mean_T[2] == old.model.outputs.mean_T[1]
    assert new.model.outputs.std_T[2] == old.model.outputs.std_T[1]


@pytest.mark.parametrize("heads", _others(Heads, ()), ids=str)
def test_heads_keep_the_towers_of_known_tasks(heads: Heads) -> None:
    table = _table()
    buy = Binary("cvr", label="bought", within="ctr")
    old = _Made(table, tasks=(TASKS[0], buy), heads=heads)
    new = _Made(table, tasks=(TASKS[1], buy, TASKS[0]), known=old, heads=heads)
    _transplant(old, new)
    before, after = old.logits(table), new.logits(table)
    torch.testing.assert_close(after[:, [2, 1]], before, rtol=1e-5, atol=1e-5)


def test_a_task_with_other_parents_is_refused() -> None:
    table = _table()
    old = _Made(table, heads=Serial((5,)))
    tasks = (TASKS[0], replace(TASKS[1], parents=("ctr",)))
    with pytest.raises(
        SchemaError, match=r"Found another: heads\.towers\.1\.hidden\.0\.weight has"
    ):
        _transplant(old, _Made(table, tasks=tasks, known=old, heads=Serial((5,))))


@pytest.mark.parametrize(
    ("sharing", "named"),
    [
        (PLE(2, expert_dims=(6,)), r"sharing\.levels\.0\.shared_gate\.weight"),
        (AdaTT(expert_dims=(6,)), r"sharing\.levels\.0\.\w+"),
        (CrossStitch((6,)), r"sharing\.stitches\.0"),
        (PEPNet((6,)), r"sharing\.layer_gates\.0\.output\.weight"),
        (STEM(expert_dims=(6,)), "vectors of width 9. Found 12: .*a view for each"),
    ],
    ids=str,
)
def test_a_structure_made_for_its_number_of_tasks_refuses_another(
    sharing: Sharing, named: str
) -> None:
    table = _table()
    old = _Made(table, sharing=sharing)
    new = _Made(table, tasks=(*TASKS, LIKE), known=old, sharing=sharing)
    with pytest.raises(SchemaError, match=named):
        _transplant(old, new)


def test_groups_of_tasks_refuse_another_task() -> None:
    table = _table()
    old = _Made(table, sharing=HoME((("ctr",), ("rating",))))
    grouped = HoME((("ctr", "like"), ("rating",)))
    new = _Made(table, tasks=(*TASKS, LIKE), known=old, sharing=grouped)
    with pytest.raises(SchemaError, match="sharing 'home', whose settings name them"):
        _transplant(old, new)


def test_an_interaction_that_sums_over_features_refuses_another_feature() -> None:
    table = _table()
    old = _Made(table, interaction=FM())
    grown = _Made(_table(ids=20), known=old, interaction=FM())
    _transplant(old, grown)
    assert torch.equal(grown.logits(table), old.logits(table))
    new = _Made(table, [*FEATURES, ADDED[0]], known=old, interaction=FM())
    with pytest.raises(SchemaError, match=r"interaction 'fm'.*features\.interaction"):
        _transplant(old, new)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {"sharing": SharedBottom()}, "must keep the sharing .* 'mmoe'. Found 'shared_bottom'"),
        ({}, {"heads": Serial((5,))}, "must keep the heads .* 'towers'. Found 'serial'"),
        ({}, {"interaction": FM()}, "must keep the interaction .* 'none'. Found 'fm'"),
        (
            {},
            {"heads": Towers((5, 4))},
            r"heads\.dims \[5\]. Found heads\.dims \[5, 4\]: heads\.towers\.0\.\S+ has",
        ),
        ({}, {"embedding_dim": 5}, "Table 'city' must keep vectors of width 3. Found 5"),
        (
            {},
            {"sharing": MMoE(4)},
            r"sharing\.num_experts 8. Found .* 4: sharing\.gates.*\(4, .*had \(8,",
        ),
        (
            {},
            {"sharing": MMoE(expert_dims=(7,))},
            r"sharing\.expert_dims \[7\].*: sharing\.experts\.0\.0\.weight has",
        ),
    ],
)
def test_another_network_is_refused_by_name(
    before: dict[str, Any], after: dict[str, Any], said: str
) -> None:
    table = _table()
    old = _Made(table, **before)
    with pytest.raises(SchemaError, match=said):
        _transplant(old, _Made(table, known=old, **after))


def test_a_task_of_another_kind_is_refused() -> None:
    table = _table()
    old = _Made(table)
    new = _Made(table, tasks=(replace(LIKE, name="rating"),))
    with pytest.raises(SchemaError, match="Task 'rating' must stay 'regression'"):
        _transplant(old, new)


def test_encoders_of_histories_and_extractors_follow_their_features() -> None:
    table = _table()
    seen, tagged = ADDED[3], History("tagged", column="tags", table="item", embedding_dim=4)
    image, size = Vector("image", dim=3), Numeric("size", scaling="standard")
    config: dict[str, Any] = {"sequences": [DIN(feature="seen"), GRU(feature="tagged")]}
    config["sharing"] = SharedBottom((6,))
    config["extractors"] = [MLPExtractor("size", dims=(4,)), MLPExtractor("image", dims=(4,))]
    old = _Made(table, [FEATURES[0], seen, tagged, size, image], **config)
    new = _Made(table, [image, tagged, size, FEATURES[0], seen], known=old, **config)
    _transplant(old, new)
    torch.testing.assert_close(new.logits(table), old.logits(table), rtol=1e-6, atol=1e-6)
    with_own = config | {"extractors": [MLPExtractor("image", dims=(5,)), config["extractors"][0]]}
    other = _Made(table, [FEATURES[0], seen, tagged, size, image], known=old, **with_own)
    with pytest.raises(SchemaError, match="Feature 'image' must keep its 4 numbers"):
        _transplant(old, other)


def test_encoded_numbers_follow_their_features_whatever_bins_the_new_ones_have() -> None:
    """A new feature with more bins widens the layer; known ones keep their bins and frequencies."""
    table = _table()
    age = Numeric("age", scaling="piecewise", num_quantiles=4)
    price = Numeric("price", scaling="periodic", num_frequencies=3)
    other = Numeric("hour", scaling="periodic", num_frequencies=2, embedding_dim=4)
    size = Numeric("size", scaling="piecewise", num_quantiles=9)
    config: dict[str, Any] = {"sharing": SharedBottom((6,)), "interaction": CrossNetwork(1)}
    old = _Made(table, [FEATURES[0], age, price], **config)
    new = _Made(table, [price, size, other, FEATURES[0], age], known=old, **config)
    transplant = _transplant(old, new)
    torch.testing.assert_close(new.logits(table), old.logits(table), rtol=1e-6, atol=1e-6)
    name = "features.numbers.piecewise_3.weight_PKD"
    moved = transplant.moved(name, old.model.get_parameter(name).detach())
    assert moved.shape == (2, 9, 3)
    assert torch.equal(moved[1, :4], old.model.get_parameter(name)[0])
    assert not moved[0].any()
    assert not moved[1, 4:].any()
    assert transplant.source("features.numbers.periodic_2_4.bias_PD") is None
    _transplant(new, _Made(table, [FEATURES[0], age, price], known=new, **config))
    wider = _Made(table, [FEATURES[0], replace(age, embedding_dim=5), price], known=old, **config)
    with pytest.raises(SchemaError, match="Feature 'age' must keep its 3 numbers"):
        _transplant(old, wider)
    with pytest.raises(SchemaError, match="num_frequencies must stay 3"):
        _Made(table, [replace(price, num_frequencies=4)], known=old, **config)


def test_moments_move_with_their_weights_and_are_zero_where_these_are_new() -> None:
    old = _Made(_table(), sharing=SharedBottom((6,)))
    new = _Made(_table(), [ADDED[0], *FEATURES], known=old, sharing=SharedBottom((6,)))
    transplant = _transplant(old, new)
    name = "sharing.bottom.0.weight"
    moved = transplant.moved(name, old.model.get_parameter(name).detach().square())
    assert torch.equal(moved, new.model.get_parameter(name).square())
    assert transplant.source("features.embeddings.tables.0.weight_RD") is not None
    number = next(i for i, t in enumerate(new.model.embeddings.each()) if "hour" in t.bases)
    source, places = transplant.table_rows(number)
    here, there = new.model.embeddings.each()[number], old.model.embeddings.each()[source or 0]
    assert (places[here.bases["hour"] :][: here.num_rows["hour"]] == -1).all()
    kept = places >= 0
    assert int(kept.sum()) == there.all_rows
    assert torch.equal(here.weight_RD[kept], there.weight_RD[places[kept]])
