"""A model goes on from another: with new days, new ids, new columns, after a break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.utils import check_random_state
from typer.testing import CliRunner

from recsys_mtl import (
    SGD,
    Adam,
    AdamW,
    Binary,
    Categorical,
    Checkpoints,
    LazyAdam,
    MMoE,
    MultiTaskRanker,
    Numeric,
    Regression,
    Renamed,
    RowWiseAdagrad,
    Schedule,
    Schema,
    SharedBottom,
    TowerOptimizer,
    Uncertainty,
    load,
)
from recsys_mtl.cli import app
from recsys_mtl.encoding import Encoder
from recsys_mtl.errors import EncodingError, ModelDirError, SchemaError
from recsys_mtl.settings import build_network
from recsys_mtl.training import CheckpointFile, Stepper, seeded
from recsys_mtl.training.loader import Loader
from recsys_mtl.training.observe import Observer

CPU = torch.device("cpu")
CONFIG = """
[tables]
interactions = "day1.parquet"
[schema]
context = [{ kind = "categorical", name = "user" }]
tasks = [{ kind = "binary", name = "ctr", label = "click" }]
[training]
max_epochs = 1
[run]
device = "cpu"
random_state = 0
"""
PLAIN: dict[str, Any] = {}
RICH: dict[str, Any] = {
    "sharing": MMoE(2, expert_dims=(8,), dropout=0.2),
    "optimizer": AdamW(1e-2),
    "tower_optimizers": [TowerOptimizer("rating", SGD(0.01, momentum=0.9))],
    "table_optimizer": LazyAdam(1e-2),
    "balance": Uncertainty(),
    "average": 0.9,
    "schedule": Schedule(warmup_steps=3, decay="cosine"),
    "clip_norm": 1.0,
}


def _day(number: int, *, users: int = 20, rows: int = 600) -> pl.DataFrame:
    rng = np.random.default_rng(number)
    user, item = rng.integers(0, users, rows), rng.integers(0, 9, rows)
    liked = rng.random(rows) < np.where((user + item) % 2, 0.8, 0.2)
    return pl.DataFrame(
        {
            "user": np.concatenate([np.arange(users), user[users:]]),
            "item": item,
            "price": rng.normal(size=rows),
            "hour": rng.integers(0, 24, rows),
            "click": liked.astype(int),
            "stars": item % 5 + rng.normal(size=rows),
        }
    )


def _schema(*more: Any, tasks: tuple[str, ...] = ("ctr", "rating")) -> Schema:
    known = {
        "ctr": Binary("ctr", label="click"),
        "rating": Regression("rating", label="stars"),
        "like": Binary("like", label="click"),
    }
    features = [Categorical("user"), Categorical("item"), Numeric("price", scaling="standard")]
    return Schema(context=[*features, *more], tasks=[known[name] for name in tasks])


def _ranker(schema: Schema | None = None, **settings: Any) -> MultiTaskRanker:
    small = {"sharing": SharedBottom((8,)), "embedding_dim": 4, "batch_size": 64, "max_epochs": 1}
    fixed = {"device": "cpu", "random_state": 0, "observe_every": 0, "progress": False}
    return MultiTaskRanker(schema or _schema(), **(small | fixed | settings))


def _still(schema: Schema | None = None, **settings: Any) -> MultiTaskRanker:
    """Return a ranker whose steps move nothing that a score shows, nor does a mean catch up."""
    rates = {"optimizer": Adam(1e-12), "table_optimizer": RowWiseAdagrad(1e-12), "average": None}
    return _ranker(schema, **rates | settings)


def _bits(ranker: MultiTaskRanker) -> dict[str, Any]:
    state = ranker.scorer.model.state_dict()
    return {name: value.tolist() for name, value in state.items()}


def _by_hand(days: list[pl.DataFrame], **settings: Any) -> dict[str, Any]:
    """Train one stepper on all days' batches, one after another."""
    ranker = _ranker(**settings)
    chosen, schema = ranker._settings(), ranker.schema
    seed = int(check_random_state(0).randint(2**31 - 1))
    encoder = Encoder(schema)
    batches = [encoder.fit_encode(days[0]), *(encoder.encode(day) for day in days[1:])]
    with seeded(seed, CPU):
        model = build_network(encoder, chosen)
        model.learn_outputs(batches[0])
        observer = Observer([task.name for task in schema.tasks], 0)
        stepper = Stepper(model.train(), schema, chosen, seed=seed, observer=observer)
        step = 0
        for batch in batches:
            loader = Loader(batch, CPU, batch_size=chosen.batch_size, seed=seed)
            for inputs, targets in loader.batches(1):
                rise = chosen.schedule.warmup_steps
                stepper.take([(inputs, targets)], factor=min(1, (step + 1) / max(rise, 1)))
                step += 1
    stepper.swap_average()
    for number, table in enumerate(model.embeddings.each()):
        table.fill_untrained(stepper.table_optimizer.trained(number))
    return {name: value.tolist() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("settings", [PLAIN, RICH], ids=["plain", "rich"])
def test_two_days_one_by_one_are_one_run_over_both(settings: dict[str, Any]) -> None:
    days = [_day(1), _day(2)]
    ranker = _ranker(**settings).partial_fit(days[0]).partial_fit(days[1])
    assert _bits(ranker) == _by_hand(days, **settings)
    assert ranker.warm_start_notes_ == []


@pytest.mark.parametrize("settings", [PLAIN, RICH], ids=["plain", "rich"])
def test_a_model_that_was_saved_goes_on_as_if_it_had_not_been(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    whole = _ranker(**settings).partial_fit(_day(1)).partial_fit(_day(2, users=30))
    _ranker(**settings).partial_fit(_day(1)).save(tmp_path / "model")
    again = load(tmp_path / "model", device="cpu").partial_fit(_day(2, users=30))
    assert _bits(again) == _bits(whole)
    again.save(tmp_path / "model")
    assert _bits(load(tmp_path / "model", device="cpu")) == _bits(whole)


def test_the_first_part_is_a_fit_of_one_epoch() -> None:
    first = _ranker(max_epochs=7, monitor="ctr.auc").partial_fit(_day(1))
    assert _bits(first) == _bits(_ranker(max_epochs=1).fit(_day(1)))
    assert first.history_.height == 1
    assert first.settings_.max_epochs == 7


def test_new_ids_get_rows_and_absent_ones_keep_theirs_with_their_state() -> None:
    day2 = _day(2, users=30).filter(pl.col("user") >= 5)
    ranker = _ranker().partial_fit(_day(1))
    before = ranker.scorer.encoder, ranker.scorer.model, ranker.training_.tensors()
    ranker.partial_fit(day2)
    assert ranker.warm_start_notes_ == ["table 'user': 23 -> 33 rows"]
    after = ranker.scorer.encoder, ranker.scorer.model, ranker.training_.tensors()
    people = pl.DataFrame({"user": range(30), "item": 0, "price": 0.0})

    def rows(found: Any) -> tuple[torch.Tensor, torch.Tensor]:
        encoder, model, state = found
        ids = encoder.encode(people, labels="none").parts[0].block.ids[:, 0].astype(np.int64)
        table = model.embeddings.each()[0]
        place = torch.from_numpy(ids) + table.bases["user"]
        return table.weight_RD[place], state["table.0.accumulator"][place]

    (old, old_state), (new, new_state) = rows(before), rows(after)
    assert torch.equal(new[:5], old[:5])
    assert torch.equal(new_state[:5], old_state[:5])
    assert (new_state[5:20] > old_state[5:20]).all()
    assert (new_state[20:] > 0).all()
    assert len({tuple(vector) for vector in old[20:].tolist()}) == 1  # they were unknown
    assert len({tuple(vector) for vector in new[20:].tolist()}) == 10


def test_the_known_ranker_stays_as_it_is() -> None:
    known = _ranker(**RICH).partial_fit(_day(1))
    twin = _ranker(**RICH).partial_fit(_day(1))
    _ranker(**RICH).fit(_day(3), warm_start=known)
    assert _bits(known) == _bits(twin)
    assert _bits(known.partial_fit(_day(2))) == _bits(twin.partial_fit(_day(2)))


def test_a_new_feature_and_a_new_task_leave_the_scores_of_the_others() -> None:
    known = _ranker(max_epochs=3, average=None).fit(_day(1))
    wider = _schema(Categorical("hour"), tasks=("like", "rating", "ctr"))
    grown = _still(wider).fit(_day(1), warm_start=known)
    assert grown.warm_start_notes_ == ["feature 'hour' is new", "task 'like' is new"]
    before, after = known.predict(_day(1)), grown.predict(_day(1))
    for task in ("ctr", "rating"):
        assert (before[task] - after[task]).abs().max() <= 2e-6
    assert after["like"].std() > 0
    back = _still().fit(_day(1), warm_start=grown)
    assert back.warm_start_notes_ == ["feature 'hour' is gone", "task 'like' is gone"]


def test_other_optimizers_begin_afresh_and_say_so() -> None:
    known = _ranker().fit(_day(1))
    other = {"optimizer": SGD(0.1), "table_optimizer": LazyAdam(), "balance": Uncertainty()}
    assert _ranker(**other).fit(_day(2), warm_start=known).warm_start_notes_ == [
        "'lazy_adam' begins afresh where 'row_wise_adagrad' was",
        "SGD begins afresh where Adam was",
        "balance 'uncertainty' begins afresh",
    ]


def test_a_folder_without_training_state_starts_optimizers_afresh(tmp_path: Path) -> None:
    known = _ranker().fit(_day(1))
    known.save(tmp_path / "model", training=False)
    assert not (tmp_path / "model" / "training.safetensors").exists()
    grown = _still().fit(_day(1), warm_start=tmp_path / "model")
    assert grown.warm_start_notes_ == ["optimizers begin afresh: the model has no training state"]
    before, after = known.predict(_day(1)), grown.predict(_day(1))
    assert (before["ctr"] - after["ctr"]).abs().max() <= 1e-6


@pytest.mark.parametrize("change", ["folder", "optimizer"])
def test_a_null_that_new_rows_lack_is_not_forgotten_where_optimizers_begin_afresh(
    change: str, tmp_path: Path
) -> None:
    """A reserved row that no row has trained gets the mean of the others: this one was trained."""
    odd = pl.when(pl.col("click") == 1).then(None).otherwise(pl.col("item")).alias("item")
    fast = {"table_optimizer": RowWiseAdagrad(0.1), "max_epochs": 3, "average": None}
    known = _ranker(**fast).fit(_day(1).with_columns(odd))
    known.save(tmp_path / "model", training=change != "folder")
    found = load(tmp_path / "model", device="cpu")
    still: dict[str, Any] = {"optimizer": Adam(1e-12), "random_state": 1}
    still["table_optimizer"] = LazyAdam(1e-12) if change == "optimizer" else RowWiseAdagrad(1e-12)
    nulls = _day(2).with_columns(pl.lit(None, pl.Int64).alias("item"))
    before = known.predict(nulls)["ctr"]
    assert (before - known.predict(_day(2))["ctr"]).abs().mean() > 0.1
    once = found.set_params(**still).partial_fit(_day(2))
    assert (once.predict(nulls)["ctr"] - before).abs().max() <= 1e-6
    twice = once.partial_fit(_day(3, users=30))
    assert (twice.predict(nulls)["ctr"] - before).abs().max() <= 1e-6


def test_scoring_reads_no_training_state_and_a_warm_start_checks_it(tmp_path: Path) -> None:
    known = _ranker().fit(_day(1))
    known.save(tmp_path / "model")
    file = tmp_path / "model" / "training.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    loaded = load(tmp_path / "model", device="cpu")
    assert loaded.predict(_day(2)).equals(known.predict(_day(2)))
    with pytest.raises(ModelDirError, match=r"training\.safetensors was changed"):
        loaded.partial_fit(_day(2))
    assert loaded.predict(_day(2)).equals(known.predict(_day(2)))


def test_running_means_go_on_from_the_best_weights_after_validation() -> None:
    ranker = _ranker(average=0.9, max_epochs=3).fit(_day(1), valid=_day(2))
    weights = [p for p in ranker.scorer.model.parameters() if p.requires_grad]
    kept = ranker.training_.tensors()
    for number, weight in enumerate(weights):
        assert torch.equal(kept[f"average.{number}"], weight)


def test_tables_are_reset_to_what_the_warm_start_found() -> None:
    """A fresh draw would lose the users that the new rows lack."""
    day2 = _day(2).filter(pl.col("user") >= 5)
    known = _ranker().fit(_day(1))
    once = _ranker(reset_tables=True).fit(day2, warm_start=known)
    assert _bits(once) == _bits(_ranker().fit(day2, warm_start=known))
    twice = _ranker(reset_tables=True, max_epochs=2).fit(day2, warm_start=known)
    tables = [made.scorer.model.embeddings.each()[0].weight_RD for made in (known, twice)]
    ids = known.scorer.encoder.encode(_day(1)).parts[0].block.ids[:5, 0].astype(np.int64)
    assert torch.equal(tables[0][ids], tables[1][ids])
    # where nothing moves, one batch of all rows has the same gradients in every epoch
    whole = {"batch_size": 1000, "reset_tables": True}
    runs = [_still(max_epochs=n, **whole).fit(day2, warm_start=known) for n in (1, 2)]
    state = [made.training_.tensors()["table.0.accumulator"] for made in runs]
    torch.testing.assert_close(state[1], state[0], rtol=1e-4, atol=1e-9)


def test_a_warm_run_that_died_ends_as_if_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, other = _ranker().fit(_day(1)), _ranker().fit(_day(3))
    settings: dict[str, Any] = {"max_epochs": 2, "reset_tables": True}
    whole = _ranker(**settings).fit(_day(2), warm_start=known)
    kept = Checkpoints(str(tmp_path / "run"), every_steps=4)
    save, left = CheckpointFile.save, iter(range(1))

    def dying(file: CheckpointFile, snapshot: Any) -> None:
        save(file, snapshot)
        if next(left, None) is None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFile, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            _ranker(**settings).fit(_day(2), warm_start=known, checkpoints=kept)
    again = _ranker(**settings).fit(_day(2), warm_start=known, checkpoints=kept)
    assert _bits(again) == _bits(whole)
    for start in (other, None):
        with pytest.raises(ModelDirError, match=r"another run: .*warm start"):
            _ranker(**settings).fit(_day(2), warm_start=start, checkpoints=kept)


def test_what_cannot_go_on_leaves_the_ranker_as_it_was() -> None:
    ranker = _ranker().fit(_day(1))
    before = ranker.predict(_day(2))
    strangers = _day(2).with_columns(pl.col("user").cast(pl.String))
    with pytest.raises(EncodingError, match="'user' was trained on numbers"):
        ranker.partial_fit(strangers)
    with pytest.raises(SchemaError, match="must keep the sharing"):
        ranker.set_params(sharing=MMoE(2)).partial_fit(_day(2))
    assert ranker.predict(_day(2)).equals(before)
    with pytest.raises(TypeError, match="y must be None"):
        ranker.partial_fit(_day(2), _day(2)["click"])  # type: ignore[arg-type] # the point


def test_a_column_of_another_name_is_refused_until_it_is_said_to_be_renamed(tmp_path: Path) -> None:
    known = _ranker().fit(_day(1))
    known.save(tmp_path / "model")
    features = [Categorical("user"), Categorical("item"), Numeric("price", scaling="standard")]
    tasks = [Binary("ctr", label="clicked"), Regression("rating", label="stars")]
    new = Schema(context=[Categorical("user", column="user_id"), *features[1:]], tasks=tasks)
    names = {"user": "user_id", "click": "clicked"}
    day2 = _day(2).rename(names)
    with pytest.raises(SchemaError, match=r"Feature 'user': column must stay 'user'.* 'user_id'"):
        _ranker(new).fit(day2, warm_start=known)
    with pytest.raises(SchemaError, match=r"Task 'ctr': label must stay 'click'.* 'clicked'"):
        _ranker(new).fit(day2, warm_start=Renamed(known, columns={"user": "user_id"}))
    expected = _bits(_ranker().fit(_day(2), warm_start=known))
    for start in (known, tmp_path / "model"):
        grown = _ranker(new).fit(day2, warm_start=Renamed(start, columns=names))
        assert _bits(grown) == expected


def test_a_command_says_which_columns_were_renamed(tmp_path: Path) -> None:
    _day(1).write_parquet(tmp_path / "day1.parquet")
    _day(2).rename({"click": "clicked"}).write_parquet(tmp_path / "day2.parquet")
    config, first = tmp_path / "config.toml", str(tmp_path / "first")
    config.write_text(CONFIG)
    assert CliRunner().invoke(app, ["train", str(config), "-m", first]).exit_code == 0
    config.write_text(CONFIG.replace("day1", "day2").replace('"click"', '"clicked"'))
    train = ["train", str(config), "-m", str(tmp_path / "second"), "--warm-start", first]
    result = CliRunner().invoke(app, train)
    assert (result.exit_code, "Task 'ctr': label" in result.output) == (2, True)
    result = CliRunner().invoke(app, [*train, "--renamed", "click"])
    assert (result.exit_code, "--renamed must be OLD=NEW" in result.output) == (2, True)
    result = CliRunner().invoke(app, [*train, "--renamed", "click=clicked"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (MMoE(2, expert_dims=(8,)), MMoE(3, expert_dims=(8,)), "sharing.num_experts"),
        (MMoE(2, expert_dims=(8,)), MMoE(2, expert_dims=(9,)), "sharing.expert_dims"),
        (SharedBottom((8,)), SharedBottom((8, 4)), "sharing.dims"),
    ],
)
def test_a_network_of_another_size_is_refused_by_its_setting(
    before: Any, after: Any, text: str
) -> None:
    known = _ranker(sharing=before).fit(_day(1))
    with pytest.raises(SchemaError, match=rf"must keep .*: {text} \S+\. Found {text} .*: "):
        _ranker(sharing=after).fit(_day(2), warm_start=known)


def test_a_command_goes_on_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _day(1).write_parquet(tmp_path / "day1.parquet")
    _day(2, users=30).write_parquet(tmp_path / "day2.parquet")
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    first, second = (str(tmp_path / name) for name in ("first", "second"))
    result = CliRunner().invoke(app, ["train", str(config), "--model", first])
    assert result.exit_code == 0, result.output
    config.write_text(CONFIG.replace("day1", "day2"))
    train = ["train", str(config), "--model", second, "--warm-start", first]
    result = CliRunner().invoke(app, train)
    assert result.exit_code == 0, result.output
    assert "warm start: table 'user': 23 -> 33 rows" in result.output
    by_hand = load(first, device="cpu").set_params(schema=load(second).schema)
    by_hand.fit(tmp_path / "day2.parquet", warm_start=first)
    assert _bits(load(second, device="cpu")) == _bits(by_hand)
    result = CliRunner().invoke(app, [*train[:-1], str(tmp_path)])
    assert (result.exit_code, "must be a model folder" in result.output) == (2, True)
