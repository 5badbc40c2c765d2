import polars as pl
import pytest

from recsys_mtl import Binary, Categorical, MultiTaskRanker, Schema, SharedBottom, Side


@pytest.fixture(scope="session")
def table():
    numbers = range(1000)
    return pl.DataFrame(
        {
            "user_id": [f"u{n * 7 % 23}" for n in numbers],
            "item_id": [n * 5 % 17 for n in numbers],
            "click": [n * 7 % 3 % 2 for n in numbers],
        }
    )


@pytest.fixture(scope="session")
def scorer(table):
    schema = Schema(
        user=Side("user_id", features=[Categorical("user_id")]),
        item=Side("item_id", features=[Categorical("item_id")]),
        tasks=[Binary("ctr", label="click")],
    )
    made = MultiTaskRanker(
        schema,
        sharing=SharedBottom(dims=(8,)),
        embedding_dim=4,
        max_epochs=2,
        batch_size=100,
        device="cpu",
        random_state=0,
    )
    return made.fit(table).scorer


@pytest.fixture
def folder(table, tmp_path):
    """Four files of 250 rows of the table, in five row groups each."""
    made = tmp_path / "rows"
    made.mkdir()
    for number in range(4):
        part = table.slice(number * 250, 250)
        part.write_parquet(made / f"{number}.parquet", row_group_size=50)
    return made
