"""A saved model is the model; a folder that is not as it was written is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import safetensors.numpy

from recsys_mtl import load
from recsys_mtl.errors import ModelDirError

FILES = [
    "encoder.json",
    "encoder.safetensors",
    "manifest.json",
    "metrics.json",
    "model.json",
    "schema.json",
    "weights.safetensors",
]


@pytest.fixture
def copy(model, tmp_path) -> Path:
    """A copy of the shared model's folder, for a test to change."""
    return Path(shutil.copytree(model, tmp_path / "model"))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_loaded_model_gives_the_same_bits(ranker, model, log):
    test = log.rows(log.part("test"))
    loaded = load(model, device="cpu")
    assert loaded.predict(test).equals(ranker.predict(test))
    assert loaded.evaluate(test) == ranker.evaluate(test)
    assert loaded.score(test) == ranker.score(test)


def test_a_loaded_ranker_knows_how_it_was_fitted(ranker, model):
    loaded = load(model, device="cpu")
    assert loaded.get_params() == ranker.get_params()
    assert loaded.settings_ == ranker.settings_
    assert loaded.best_epoch_ == ranker.best_epoch_
    assert loaded.valid_report_ == ranker.valid_report_
    assert loaded.history_.equals(ranker.history_)


def test_undefined_metrics_survive_saving(make, log, tmp_path):
    one_class = log.part("valid").filter(pl.col("label_ctr") == 1)
    fitted = make(max_epochs=1)
    with pytest.warns(UserWarning, match="undefined"):
        fitted.fit(log.rows(log.part("train").head(500)), valid=log.rows(one_class))
    fitted.save(tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu")
    assert np.isnan(loaded.valid_report_.value("ctr", "auc"))
    assert loaded.history_.equals(fitted.history_)
    assert loaded.valid_report_.notes == fitted.valid_report_.notes


def test_a_model_without_validation_is_saved_and_loaded(make, log, tmp_path):
    fitted = make(max_epochs=1).fit(log.rows(log.part("train").head(500)))
    fitted.save(tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu")
    assert loaded.valid_report_ is None
    assert loaded.history_.equals(fitted.history_)


def test_saving_a_loaded_model_writes_the_same_bytes(model, tmp_path):
    load(model, device="cpu").save(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(model)


def test_a_loaded_ranker_can_be_fitted_again(model, log, tmp_path):
    loaded = load(model, device="cpu")
    train = log.rows(log.part("train").head(500))
    before = loaded.predict(train)
    loaded.set_params(max_epochs=1, embedding_dim=2).fit(train)
    assert not loaded.predict(train).equals(before)
    loaded.save(tmp_path / "model")
    assert load(tmp_path / "model", device="cpu").predict(train).equals(loaded.predict(train))


def test_saving_over_a_model_replaces_it(ranker, make, log, tmp_path):
    target = tmp_path / "model"
    make(max_epochs=1).fit(log.rows(log.part("train").head(500))).save(target)
    ranker.save(target)
    test = log.rows(log.part("test"))
    assert load(target, device="cpu").predict(test).equals(ranker.predict(test))
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_folders_on_the_way_are_made(ranker, tmp_path):
    ranker.save(tmp_path / "a" / "b" / "model")
    assert load(tmp_path / "a" / "b" / "model", device="cpu").settings_ == ranker.settings_


def test_the_folder_holds_json_and_safetensors_and_no_pickle(model):
    found = contents(model)
    assert sorted(found) == sorted([*FILES, "training.safetensors"])
    for name, data in found.items():
        if name.endswith(".json"):
            assert isinstance(json.loads(data), dict)
        else:
            assert safetensors.numpy.load(data)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_anywhere_is_refused(copy, name):
    file = copy / name
    data = file.read_bytes()
    places = np.random.default_rng(0).integers(len(data), size=12)
    for place in [0, *places.tolist(), len(data) - 1]:
        changed = bytearray(data)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises(ModelDirError, match="model"):
            load(copy)
    file.write_bytes(data)
    load(copy, device="cpu")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["missing", "truncated", "empty", "longer", "link"])
def test_a_file_that_is_not_as_written_is_refused(copy, tmp_path, name, harm):
    file = copy / name
    data = file.read_bytes()
    file.unlink()
    if harm == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        file.symlink_to(tmp_path / "elsewhere")
    elif harm != "missing":
        file.write_bytes({"truncated": data[:-1], "empty": b"", "longer": data + b"\n"}[harm])
    with pytest.raises(ModelDirError):
        load(copy)


def test_a_file_that_is_not_listed_is_refused(copy):
    (copy / "model.pkl").write_bytes(b"\x80")
    with pytest.raises(ModelDirError, match=r"model\.pkl"):
        load(copy)


@pytest.mark.parametrize("place", ["nowhere", "file", "empty"])
def test_what_is_no_model_folder_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("{}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelDirError, match="must be a model folder"):
        load(tmp_path / place)


def test_an_unknown_device_is_refused(model):
    with pytest.raises(ValueError, match="device must be"):
        load(model, device="abacus")
