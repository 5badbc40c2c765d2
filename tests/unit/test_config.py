import os

import polars as pl
import pytest

from recsys_mtl import PLE, Adam, MMoE, SharedBottom, TowerDims, Towers
from recsys_mtl.config import Config, check_labels, read_config, where
from recsys_mtl.errors import EncodingError, SchemaError
from recsys_mtl.reading import scan

CONFIG = """
[tables]
interactions = "rows.parquet"
users = "users.parquet"
train = "day < '2022-05-03'"
valid = "day >= '2022-05-03' AND hour > 3"

[schema]
context = [{ kind = "categorical", name = "hour" }]
tasks = [{ kind = "binary", name = "ctr", label = "click" }]

[schema.user]
key = "user_id"
features = [{ kind = "categorical", name = "user_id" }, { kind = "numeric", name = "age" }]

[model]
sharing = { kind = "ple", num_levels = 1 }

[training]
monitor = "ctr.auc"
batch_size = 7

[run]
refit = true
random_state = 3
"""


@pytest.fixture
def write(tmp_path):
    """Write the tables and a config with text replaced; return its path."""
    pl.DataFrame(
        {
            "user_id": [1, 2, 1, 3],
            "hour": [1, 2, 3, 4],
            "day": ["2022-05-01", "2022-05-02", "2022-05-03", "2022-05-04"],
            "click": [0, 1, 0, 1],
        }
    ).write_parquet(tmp_path / "rows.parquet")
    pl.DataFrame({"user_id": [1, 2, 3], "age": [10, 20, 30]}).write_parquet(
        tmp_path / "users.parquet"
    )

    def written(*changes: tuple[str, str]):
        text = CONFIG
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "config.toml").write_text(text, encoding="utf-8")
        return tmp_path / "config.toml"

    return written


def problem(file):
    with pytest.raises(SchemaError) as caught:
        read_config(file)
    return str(caught.value)


def test_a_config_gives_single_tasks_towers_of_other_widths(write):
    heads = "heads = { kind = 'towers', by_task = [{ task = 'ctr', dims = [8, 4] }] }"
    ranker = read_config(write(("[model]", f"[model]\n{heads}"))).ranker(progress=False)
    assert ranker.heads == Towers(by_task=[TowerDims("ctr", (8, 4))])
    wrong = heads.replace("'ctr'", "'ctrr'")
    assert (
        "model.heads: Towers.by_task must name tasks, each once: ['ctr']. Found 'ctrr'"
        in problem(write(("[model]", f"[model]\n{wrong}")))
    )


def test_a_config_asks_for_several_members(write):
    ranker = read_config(write(("[model]", "[model]\nnum_members = 5"))).ranker(progress=False)
    assert ranker.num_members == 5


def test_a_config_becomes_the_ranker_it_describes(write):
    config = read_config(write())
    ranker = config.ranker(progress=False)
    assert ranker.sharing == PLE(num_levels=1)
    assert ranker.heads == Towers()
    assert (ranker.monitor, ranker.batch_size, ranker.random_state) == ("ctr.auc", 7, 3)
    assert ranker.schema == config.schema
    assert config.run.refit
    assert ranker.progress is False


def test_a_config_may_name_batch_sizes_of_epochs(write):
    config = read_config(write(("batch_size = 7", "batch_size = [1024, 4096]")))
    assert config.ranker(progress=False).batch_size == (1024, 4096)


def test_what_is_left_out_has_the_defaults_of_the_ranker():
    from recsys_mtl import Binary, Categorical, MultiTaskRanker, Schema
    from recsys_mtl.config import TablesConfig

    schema = Schema(context=[Categorical("hour")], tasks=[Binary("ctr", label="click")])
    config = Config(tables=TablesConfig(interactions="rows.parquet"), schema=schema)
    assert config.ranker().get_params() == MultiTaskRanker(schema).get_params()


def test_a_config_survives_json(write):
    config = read_config(write())
    assert Config.from_json(config.to_json()) == config


def test_conditions_choose_the_rows_of_each_part(write):
    rows = read_config(write()).rows()
    assert set(rows) == {"train", "valid"}
    assert rows["train"].frame(["hour"])["hour"].to_list() == [1, 2]
    assert rows["valid"].frame(["hour"])["hour"].to_list() == [4]
    assert rows["train"].users is rows["valid"].users


def test_without_a_train_condition_all_rows_are_for_training(write):
    rows = read_config(write(("train = \"day < '2022-05-03'\"", ""))).rows()
    assert rows["train"].frame(["hour"]).height == 4


def test_relative_paths_begin_at_the_configs_folder(write, monkeypatch, tmp_path_factory):
    file = write()
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert read_config(file).tables.interactions == str(file.parent / "rows.parquet")
    monkeypatch.chdir(file.parent)
    assert read_config("config.toml").rows()["train"].frame(["hour"]).height == 2


@pytest.mark.parametrize("name", ["$PLACE", "${PLACE}"])
def test_variables_in_paths_are_taken_from_the_environment(write, monkeypatch, tmp_path, name):
    monkeypatch.setenv("PLACE", str(tmp_path))
    config = read_config(write(('"rows.parquet"', f'"{name}/rows.parquet"')))
    assert config.tables.interactions == str(tmp_path / "rows.parquet")


@pytest.mark.parametrize("name", ["$PLACE", "${PLACE}"])
def test_an_unset_variable_is_named(write, monkeypatch, name):
    monkeypatch.delenv("PLACE", raising=False)
    told = problem(write(('"users.parquet"', f'"{name}/users.parquet"')))
    assert told.startswith("tables.users names an environment variable that is not set")
    assert name in told


WRONG = [
    # a key that is not known
    ("[model]", "[modle]", "modle is not known to Config"),
    ("batch_size = 7", "batchsize = 7", "training.batchsize is not known to TrainConfig"),
    ("num_levels = 1", "num_layers = 1", "model.sharing.num_layers is not known to PLE"),
    ('name = "age"', 'nmae = "age"', "schema.user.features[1].nmae is not known to Numeric"),
    # a kind that is not known, or of another family
    ('"ple"', '"plea"', "model.sharing.kind must be one of"),
    ('"ple", num_levels = 1', '"adam"', "model.sharing.kind must be one of"),
    ('kind = "binary"', 'kind = "ternary"', "schema.tasks[0].kind must be one of"),
    ('kind = "numeric", ', "", "schema.user.features[1].kind is required"),
    # a value of the wrong type, or outside its range
    ("batch_size = 7", 'batch_size = "many"', "training.batch_size: "),
    ("batch_size = 7", "batch_size = 0", "training.batch_size: must be a whole number above 0"),
    ("batch_size = 7", "batch_size = []", "training.batch_size: must be a whole number above 0"),
    (
        "batch_size = 7",
        "batch_size = [8, 0]",
        "training.batch_size: must be a whole number above 0",
    ),
    ("num_levels = 1", "num_levels = -1", "model.sharing.num_levels: "),
    ("[model]", "[model]\nembedding_dim = 1.5", "model.embedding_dim: "),
    ("random_state = 3", 'random_state = "x"', "run.random_state: "),
    ('interactions = "rows.parquet"', "interactions = 3", "tables.interactions: "),
    ('interactions = "rows.parquet"', "", "tables.interactions: "),
    # settings against each other
    ('"ctr.auc"', '"cvr.auc"', "training.monitor must be"),
    ('"ctr.auc"', '"ctr.recall"', "training.monitor must be"),
    ("valid = ", "test = ", "run.refit needs tables.valid"),
    ("[run]", '[run]\ndevice = "abacus"', "run.device must be"),
    # the model against the schema
    (
        "[model]",
        "[model]\nsequences = [{ kind = 'din', feature = 'hour' }]",
        "model.sequences must each be for a History feature. Found 'hour'",
    ),
    (
        "[model]",
        "[model]\nextractors = [{ kind = 'mlp', feature = 'hour' }]",
        "model.extractors must each be for a Vector",
    ),
    ("[model]", "[model]\nheads = { kind = 'esmm' }", "model.heads: Heads 'esmm' need a binary"),
    (
        "[training]",
        "[training]\ntower_optimizers = [{ task = 'cvr', optimizer = { kind = 'sgd' } }]",
        "training.tower_optimizers",
    ),
    # tables, columns and conditions
    ('"rows.parquet"', '"nowhere.parquet"', "tables.interactions: "),
    ('"users.parquet"', '"nowhere.parquet"', "tables.users: "),
    ('"users.parquet"', '"config.toml"', "tables.users: "),
    ('users = "users.parquet"', 'items = "users.parquet"', "tables.items needs schema.item"),
    ('name = "age"', 'name = "aeg"', "schema.user.features[1] reads column 'aeg'"),
    ('name = "hour"', 'name = "huor"', "schema.context[0] reads column 'huor'"),
    ('key = "user_id"', 'key = "uid"', "schema.user.key reads column 'uid'"),
    ('label = "click"', 'label = "clack"', "schema.tasks[0].label reads column 'clack'"),
    (
        'label = "click"',
        'label = "click", sample_weight = "w"',
        "schema.tasks[0].sample_weight reads column 'w'",
    ),
    (
        'label = "click"',
        'label = "click", ranking = "pairwise", group = "page"',
        "schema.tasks[0].group reads column 'page'",
    ),
    ("day < '2022-05-03'", "day <", "tables.train must be an SQL condition"),
    ("day < '2022-05-03'", "dya < '2022-05-03'", "tables.train must be an SQL condition"),
    ("day < '2022-05-03'", "day < 3", "tables.train must be an SQL condition"),
    ("day < '2022-05-03'", "day", "tables.train must be an SQL condition"),
    ("hour > 3", "hour >> 3 >", "tables.valid must be an SQL condition"),
]


@pytest.mark.parametrize(("old", "new", "text"), WRONG, ids=[f"{n}: {t}" for _, n, t in WRONG])
def test_a_wrong_key_is_named_with_its_path(write, old, new, text):
    assert problem(write((old, new))).startswith(text)


def test_a_metric_is_monitored_only_with_valid_rows(write):
    told = problem(write(("valid = ", "test = "), ("refit = true", "")))
    assert told.startswith("training.monitor needs tables.valid")


def test_no_row_is_read_to_check_a_config(write, tmp_path):
    file = write()
    data = bytearray((tmp_path / "rows.parquet").read_bytes())
    footer = int.from_bytes(data[-8:-4], "little") + 8
    data[4:-footer] = b"\xff" * (len(data) - footer - 4)
    (tmp_path / "rows.parquet").write_bytes(data)
    rows = read_config(file).rows()
    with pytest.raises(EncodingError, match="could not be read"):
        rows["train"].frame(["hour"])


@pytest.mark.parametrize(
    ("section", "part", "text"),
    [
        ("[model]", "sequences = [{ kind = 'din', feature = 'hour' }]", "model.sequences"),
        ("[model]", "heads = { kind = 'esmm' }", "model.heads"),
        (
            "[training]",
            "tower_optimizers = [{ task = 'x', optimizer = { kind = 'sgd' } }]",
            "training.tower_optimizers",
        ),
    ],
)
def test_what_does_not_fit_the_schema_is_refused_though_no_row_can_be_read(
    write, tmp_path, section, part, text
):
    file = write((section, f"{section}\n{part}"))
    for name in ("rows.parquet", "users.parquet"):
        (tmp_path / name).write_bytes(b"no table")
    assert problem(file).startswith(text)


@pytest.mark.parametrize("data", [b"[tables", b"\xff\xfe", b"a = 1\na = 2"])
def test_what_is_no_toml_is_refused_with_the_files_name(tmp_path, data):
    (tmp_path / "config.toml").write_bytes(data)
    assert "config.toml must be TOML" in problem(tmp_path / "config.toml")


@pytest.mark.parametrize("name", ["nowhere.toml", "."])
def test_a_config_that_cannot_be_read_is_refused_with_its_name(tmp_path, name):
    assert "must be a readable TOML file" in problem(tmp_path / name)


def test_a_condition_keeps_the_rows_for_which_it_is_true():
    rows = scan(pl.DataFrame({"n": [1, 2, None]}))
    assert where(rows, "n > 1", path="--where").frame(["n"])["n"].to_list() == [2]


def test_labels_are_checked_without_reading_features(write):
    config = read_config(write())
    rows = config.rows()
    check_labels(rows["valid"], config.schema, path="tables.test")
    bad = scan(pl.DataFrame({"click": [0, 7]}))
    with pytest.raises(EncodingError, match="0 or 1"):
        check_labels(bad, config.schema, path="tables.test")
    with pytest.raises(EncodingError, match=r"tables\.test must select rows"):
        check_labels(bad.filter(pl.col("click") > 9), config.schema, path="tables.test")


def test_nested_specs_take_every_sharing_structure_and_optimizer(write):
    for text, sharing in (
        (
            'kind = "mmoe", num_experts = 2, expert_dims = [4]',
            MMoE(num_experts=2, expert_dims=(4,)),
        ),
        ('kind = "shared_bottom", dims = [4, 2]', SharedBottom(dims=(4, 2))),
    ):
        changes = (
            ('kind = "ple", num_levels = 1', text),
            ("[training]", '[training]\noptimizer = { kind = "adam", learning_rate = 0.5 }'),
        )
        config = read_config(write(*changes))
        assert config.model.sharing == sharing
        assert config.training.optimizer == Adam(0.5)


def test_reading_a_config_leaves_the_environment_as_it_was(write, monkeypatch):
    monkeypatch.setenv("PLACE", ".")
    before = dict(os.environ)
    read_config(write(('"rows.parquet"', '"$PLACE/rows.parquet"')))
    assert dict(os.environ) == before
