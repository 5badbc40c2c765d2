"""What `describe` says of a model, line by line."""

from __future__ import annotations

import polars as pl
import pytest

from recsys_mtl import (
    SGD,
    Adam,
    AdamW,
    Bag,
    Binary,
    Categorical,
    MultiTaskRanker,
    Numeric,
    Regression,
    RowWiseAdagrad,
    Schedule,
    Schema,
    SharedBottom,
    Side,
    TowerOptimizer,
    Towers,
)
from recsys_mtl.describe import describe_model

TABLE = pl.DataFrame(
    {
        "user_id": [k % 20 for k in range(200)],
        "tags": [["a", "b"][: k % 3] for k in range(200)],
        "age": [float(k % 9) for k in range(200)],
        "click": [k % 2 for k in range(200)],
        "like": [k % 3 == 0 for k in range(200)],
        "stars": [1.0 + k % 5 for k in range(200)],
        "w": [1.0 + k % 2 for k in range(200)],
    }
)


@pytest.fixture(scope="module")
def lines() -> list[str]:
    schema = Schema(
        user=Side("user_id", features=[Categorical("user_id", min_count=2)]),
        context=[Bag("tags", embedding_dim=3), Numeric("age", scaling="standard")],
        tasks=[
            Binary("ctr", label="click", loss="focal", focal_gamma=1.5, positive_weight=3.0),
            Binary("like", label="like", within="ctr", joint="both", sample_weight="w"),
            Binary("picked", label="click", ranking="pairwise", ranking_share=0.25),
            Regression("rating", label="stars", weight=0.5, loss="huber", bounds=(1.0, 5.0)),
        ],
    )
    ranker = MultiTaskRanker(
        schema,
        sharing=SharedBottom((6,)),
        heads=Towers((5,)),
        embedding_dim=4,
        optimizer=AdamW(0.01),
        tower_optimizers=[TowerOptimizer("rating", SGD(0.1)), TowerOptimizer("like", Adam(0.2))],
        table_optimizer=RowWiseAdagrad(0.3),
        schedule=Schedule(warmup_steps=2),
        batch_size=50,
        max_epochs=1,
        device="cpu",
        random_state=7,
    )
    return describe_model(ranker.fit(TABLE)).splitlines()


def test_the_optimizers_of_the_network_the_towers_and_the_tables_are_told(lines: list[str]) -> None:
    start = lines.index("training")
    told = [line.strip() for line in lines[start + 1 : lines.index("parameters")]]
    assert told[0] == "balance: Fixed()"
    assert told[1].startswith("optimizer: AdamW(learning_rate=0.01")
    assert "schedule: Schedule(warmup_steps=2" in told[1]
    assert told[2].startswith("optimizer of rating: SGD(learning_rate=0.1")
    assert told[3].startswith("optimizer of like: Adam(learning_rate=0.2")
    assert told[4].startswith("tables: RowWiseAdagrad(learning_rate=0.3")
    assert told[5] == "batches of 50, random state 7"


def test_embedding_tables_are_told_with_rows_and_widths(lines: list[str]) -> None:
    """Three rows of a table stand for null, unseen and empty; a bag's width may be its own."""
    start = lines.index("embedding tables")
    assert lines[start + 1 : start + 3] == ["  user_id: 23 rows x 4", "  tags: 5 rows x 3"]
    tables = 23 * 4 + 5 * 3
    inputs = 4 + 3 + 2  # an id, a bag, and a number with its mark of being null
    towers = 4 * ((6 * 5 + 5) + (5 * 1 + 1))
    dense = inputs * 6 + 6 + towers
    told = f"  parameters: {dense:,} dense, {tables:,} in 2 embedding tables"
    assert told in lines


def test_each_task_is_told_with_every_setting_of_its_loss_that_is_no_default(
    lines: list[str],
) -> None:
    start = lines.index("predicts")
    told = {line.split()[0]: line for line in lines[start + 1 : lines.index("network")]}
    assert told["ctr"] == (
        "  ctr (binary) from click, weight 1, loss 'focal', focal_gamma 1.5, positive_weight 3.0"
    )
    assert told["like"] == (
        "  like (binary) from like, weight 1, within ctr, both as both, sample_weight 'w'"
    )
    assert told["picked"] == (
        "  picked (binary) from click, weight 1, ranking 'pairwise', ranking_share 0.25"
    )
    assert told["rating"] == (
        "  rating (regression) from stars, weight 0.5, loss 'huber', bounds (1.0, 5.0)"
    )


def test_features_and_the_network_are_told(lines: list[str]) -> None:
    assert "  user by user_id: user_id (categorical, seen 2 times or more)" in lines
    assert "  context: tags (bag), age (numeric)" in lines
    network = lines[lines.index("network") + 1 : lines.index("training")]
    assert network[0].startswith("  sharing: SharedBottom(dims=(6,)")
    assert network[1].startswith("  heads: Towers(dims=(5,)")
    assert network[2] == "  interaction: NoInteraction()"
