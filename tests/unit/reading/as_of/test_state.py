"""Features of earlier rows against a loop over all rows, and what must not change them."""

import dataclasses
import itertools
import math
import random

import polars as pl
import pytest

from recsys_mtl import AsOfState
from recsys_mtl.errors import EncodingError

DAY = 24 * 3_600_000


def features(frame: pl.DataFrame, schema) -> pl.DataFrame:
    return frame.select(feature.name for feature in schema.computed)


def close(found: object, expected: object) -> bool:
    if isinstance(found, float) and isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=1e-7, abs_tol=1e-7)
    return found == expected


def assert_like_twin(frame: pl.DataFrame, twin) -> None:
    for row in frame.to_dicts():
        for name in twin.features:
            expected = twin.value(name, row)
            assert close(row[name], expected), (name, row, expected)


def shuffled(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    return frame.sample(fraction=1.0, shuffle=True, seed=seed)


@pytest.mark.parametrize("seed", range(4))
def test_learned_rows_see_what_a_loop_over_earlier_rows_sees(make_log, schema, twin, seed):
    log = make_log(150, seed=seed)
    found = AsOfState(schema).learn(log)
    assert found.select(log.columns).equals(log)
    assert_like_twin(found, twin.Twin(schema, log.to_dicts()))


@pytest.mark.parametrize("seed", range(3))
def test_scored_rows_see_outcomes_of_the_past_and_context_of_one_another(
    make_log, schema, twin, seed
):
    past, log = make_log(150, seed=seed), make_log(60, seed=seed + 50, first=4, days=2)
    state = AsOfState(schema)
    state.update(past)
    without = log.drop("click", "rating")
    found = state.apply(without)
    assert found.select(without.columns).equals(without)
    known = past.to_dicts()
    assert_like_twin(found, twin.Twin(schema, known, without.to_dicts()))
    assert features(state.apply(without), schema).equals(features(found, schema))


def test_rows_of_the_day_in_which_the_past_ends_see_the_days_before(make_log, schema, twin):
    log = make_log(150).sort("time")
    past, later = log[:90], log[90:]
    later = later.filter(pl.col("time") >= past["time"].max())
    state = AsOfState(schema)
    state.update(past)
    found = state.apply(later)
    assert_like_twin(found, twin.Twin(schema, past.to_dicts(), later.to_dicts()))


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_changes_nothing(make_log, schema, seed):
    log = make_log(300, seed=seed).with_row_index("row")
    found = AsOfState(schema).learn(log)
    other = AsOfState(schema).learn(shuffled(log, seed))
    assert features(other.sort("row"), schema).equals(features(found, schema))


@pytest.mark.parametrize("cuts", [2, 5, 12])
def test_pieces_in_order_of_time_are_as_good_as_all_at_once(make_log, schema, cuts):
    log, test = make_log(300, seed=cuts).sort("time"), make_log(50, first=4, days=1)
    whole = AsOfState(schema)
    found = whole.learn(log)
    state, pieces = AsOfState(schema), []
    places = [0, *sorted(random.Random(cuts).sample(range(1, 300), cuts)), 300]
    for start, stop in itertools.pairwise(places):
        pieces.append(state.learn(shuffled(log[start:stop].with_row_index("row"), 1)).sort("row"))
    assert features(pl.concat(pieces), schema).equals(features(found, schema))
    assert state.apply(test).equals(whole.apply(test))


@pytest.mark.parametrize("seed", range(5))
def test_no_row_sees_itself_or_its_future(make_log, schema, seed):
    log = make_log(200, seed=seed)
    draw = random.Random(seed)
    moment = draw.choice(log["time"].to_list())
    later = pl.col("time") >= moment
    before = AsOfState(schema).learn(log)
    other = make_log(200, seed=seed + 99).filter(later)
    changed = pl.concat([log.filter(~later), other, log.filter(pl.col("time") == moment)[:1]])
    after = AsOfState(schema).learn(changed)
    assert features(after.filter(~later), schema).equals(features(before.filter(~later), schema))
    own = before.filter(pl.col("time") == moment)[:1]
    assert features(after[-1:], schema).equals(features(own, schema))


@pytest.mark.parametrize("seed", range(3))
def test_outcomes_of_a_day_are_not_seen_on_it_by_features_of_days(make_log, schema, seed):
    log = make_log(200, seed=seed)
    day = (pl.col("time") + DAY // 3) // DAY
    moment = log.select(day.median().floor()).item()
    changed = log.with_columns(
        click=pl.when(day >= moment).then(1 - pl.col("click")).otherwise("click")
    )
    daily = ["item_ctr", "item_ctr_2d", "page_ctr", "item_left", "user_left", "clicked"]
    found, other = (AsOfState(schema).learn(rows).filter(day <= moment) for rows in (log, changed))
    assert found.select(daily).equals(other.select(daily))


def test_outcomes_of_scored_rows_are_never_read(make_log, schema):
    state, log = AsOfState(schema), make_log(100, first=4)
    state.update(make_log(100))
    flipped = log.with_columns(1 - pl.col("click"), pl.col("rating") * 2)
    assert features(state.apply(log), schema).equals(features(state.apply(flipped), schema))


@pytest.mark.parametrize("seed", range(3))
def test_rows_within_the_slack_before_the_end_see_only_what_is_before_them(
    make_log, schema, twin, seed
):
    clock = dataclasses.replace(schema.clock, slack="30h")
    loose = dataclasses.replace(schema, time=clock)
    past, log = make_log(150, seed=seed), make_log(60, seed=seed + 50, first=3, days=2)
    state = AsOfState(loose)
    for day in (past.filter(pl.col("time") // DAY == d) for d in sorted(set(past["time"] // DAY))):
        state.update(day)
    assert_like_twin(state.apply(log), twin.Twin(loose, past.to_dicts(), log.to_dicts()))
    learned = state.learn(log)
    assert_like_twin(learned, twin.Twin(loose, past.to_dicts() + log.to_dicts()))
    later = make_log(40, seed=seed, first=4, days=2)
    later = later.filter(pl.col("time") >= log["time"].max() - 30 * DAY // 24)
    everything = past.to_dicts() + log.to_dicts()
    assert_like_twin(state.apply(later), twin.Twin(loose, everything, later.to_dicts()))


def test_rows_before_the_end_are_refused_and_change_nothing(make_log, schema):
    state, test = AsOfState(schema), make_log(20, first=4)
    state.update(make_log(100))
    before = state.apply(test)
    for feed in (state.learn, state.apply, state.update):
        with pytest.raises(EncodingError, match="Rows must not lie before time"):
            feed(make_log(100, seed=1))
    assert state.apply(test).equals(before)


def test_a_state_read_from_its_file_is_the_same(make_log, schema, tmp_path):
    state, test = AsOfState(schema), make_log(60, first=4)
    state.update(make_log(200))
    state.to_parquet(tmp_path / "state.parquet")
    found = AsOfState.from_parquet(tmp_path / "state.parquet", schema)
    assert found.apply(test).equals(state.apply(test))
    assert found.learn(test).equals(state.learn(test))
    other = dataclasses.replace(schema, time=dataclasses.replace(schema.clock, offset="0s"))
    with pytest.raises(EncodingError, match="of the features and the time that the schema has"):
        AsOfState.from_parquet(tmp_path / "state.parquet", other)
    with pytest.raises(EncodingError, match="must be a table that AsOfState wrote"):
        AsOfState.from_arrow(test.to_arrow(), schema)


def test_an_empty_state_is_kept_too(make_log, schema, tmp_path):
    state, log = AsOfState(schema), make_log(60)
    state.to_parquet(tmp_path / "state.parquet")
    found = AsOfState.from_parquet(tmp_path / "state.parquet", schema)
    assert found.end is None
    assert found.learn(log).equals(state.learn(log))


def test_current_values_are_those_of_a_row_scored_alone(make_log, schema):
    state, log = AsOfState(schema), make_log(200)
    state.update(log)
    moment = 10 + log["time"].max()
    rows = make_log(10, first=9).with_columns(time=moment)
    alone = pl.concat([state.apply(row) for row in rows.iter_slices(1)])
    found = state.current(rows.drop("time", "click", "rating"), at=moment)
    assert features(found, schema).equals(features(alone, schema))
    users = state.current(pl.DataFrame({"user": ["a", "new"]}))
    assert "seen" in users.columns
    assert "item_ctr" not in users.columns
    assert users["seen"].to_list()[1] == 0
