import itertools
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys_mtl import model_dir
from recsys_mtl.errors import ModelDirError
from recsys_mtl.model_dir import (
    ModelDir,
    TrainingTensors,
    check_target,
    read_model_dir,
    write_model_dir,
)


def made(number: float = 1.0) -> ModelDir:
    return ModelDir(
        schema={"tasks": ["ctr", "Größe"]},
        model={"dims": [2, 3]},
        encoder={"tables": {"user": 8}},
        metrics={"history": [], "value": number},
        encoder_arrays={"buckets": np.arange(3), "edges": np.empty(0)},
        weights={"w": torch.full((2, 3), number), "step": torch.tensor(2**53 + 1)},
    )


def same(found: ModelDir, expected: ModelDir) -> bool:
    plain = all(
        getattr(found, name) == getattr(expected, name)
        for name in ("schema", "model", "encoder", "metrics")
    )
    arrays = {name: array.tolist() for name, array in found.encoder_arrays.items()}
    weights = {name: value.tolist() for name, value in found.weights.items()}
    return (
        plain
        and arrays == {name: array.tolist() for name, array in expected.encoder_arrays.items()}
        and weights == {name: value.tolist() for name, value in expected.weights.items()}
    )


def resigned(folder, changes):
    """Change the manifest and sign it again, as another version of the package would write it."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_bytes()) | changes
    del manifest["sha256"]
    signed = manifest | {"sha256": model_dir._sha256(model_dir._dump(manifest))}
    file.write_bytes(model_dir._dump(signed))


def test_what_is_written_is_read(tmp_path):
    write_model_dir(tmp_path / "model", made())
    assert same(read_model_dir(tmp_path / "model"), made())


def with_training(number: float):
    return replace(made(), training=TrainingTensors({"moment": torch.full((2,), number)}))


def test_training_state_is_read_when_it_is_asked_for(tmp_path):
    write_model_dir(tmp_path / "model", with_training(3.0))
    found = read_model_dir(tmp_path / "model")
    assert same(found, made())
    assert found.training.tensors()["moment"].tolist() == [3, 3]
    write_model_dir(tmp_path / "copy", found)
    assert read_model_dir(tmp_path / "copy").training.tensors()["moment"].tolist() == [3, 3]
    write_model_dir(tmp_path / "model", made())
    assert read_model_dir(tmp_path / "model").training is None
    with pytest.raises(ModelDirError, match=r"training\.safetensors must be a plain file"):
        found.training.tensors()


def test_training_state_of_another_model_is_refused(tmp_path):
    write_model_dir(tmp_path / "model", with_training(3.0))
    found = read_model_dir(tmp_path / "model")
    write_model_dir(tmp_path / "model", with_training(4.0))
    with pytest.raises(ModelDirError, match=r"training\.safetensors was changed"):
        found.training.tensors()


@pytest.mark.parametrize("listed", [True, False])
def test_training_state_is_there_if_and_only_if_it_is_listed(tmp_path, listed):
    write_model_dir(tmp_path / "model", with_training(3.0) if listed else made())
    file = tmp_path / "model" / "training.safetensors"
    file.unlink() if listed else file.write_bytes(b"")
    with pytest.raises(ModelDirError, match=r"Missing or extra: \['training\.safetensors'\]"):
        read_model_dir(tmp_path / "model")


def test_arrays_that_are_not_contiguous_are_written_whole(tmp_path):
    wide = np.arange(12).reshape(3, 4)
    contents = ModelDir({}, {}, {}, {}, {"a": wide[:, ::2]}, {"w": torch.arange(6).view(2, 3).T})
    write_model_dir(tmp_path / "model", contents)
    found = read_model_dir(tmp_path / "model")
    assert (found.encoder_arrays["a"] == wide[:, ::2]).all()
    assert found.weights["w"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_equal_contents_give_equal_bytes(tmp_path):
    for name in ("one", "other"):
        write_model_dir(tmp_path / name, made())
    one, other = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("one", "other")
    )
    assert one == other


@pytest.mark.parametrize("key", ["format_version", "hash_version"])
@pytest.mark.parametrize("value", [0, 99, "1", None])
def test_an_unknown_version_is_refused_with_the_version_that_wrote_it(tmp_path, key, value):
    write_model_dir(tmp_path / "model", made())
    resigned(tmp_path / "model", {key: value, "package_version": "77.0"})
    with pytest.raises(ModelDirError, match=rf"{key} .*77\.0"):
        read_model_dir(tmp_path / "model")


def test_another_tools_manifest_is_refused(tmp_path):
    write_model_dir(tmp_path / "model", made())
    resigned(tmp_path / "model", {"format": "another model"})
    with pytest.raises(ModelDirError, match="another model"):
        read_model_dir(tmp_path / "model")


@pytest.mark.parametrize("text", ["", "[]", "null", "3", "{", '{"a": 1}', '{"sha256": ""}', "\xff"])
def test_a_manifest_that_is_no_manifest_is_refused(tmp_path, text):
    write_model_dir(tmp_path / "model", made())
    (tmp_path / "model" / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelDirError, match="manifest"):
        read_model_dir(tmp_path / "model")


def test_an_unlisted_file_that_the_manifest_was_signed_for_is_refused(tmp_path):
    write_model_dir(tmp_path / "model", made())
    resigned(tmp_path / "model", {"files": {}})
    with pytest.raises(ModelDirError, match="changed"):
        read_model_dir(tmp_path / "model")


def test_a_link_to_a_model_folder_is_read_and_written_through(tmp_path):
    write_model_dir(tmp_path / "v1", made(1.0))
    (tmp_path / "current").symlink_to("v1")
    assert same(read_model_dir(tmp_path / "current"), made(1.0))
    write_model_dir(tmp_path / "current", made(2.0))
    assert (tmp_path / "current").is_symlink()
    assert same(read_model_dir(tmp_path / "v1"), made(2.0))


def test_a_file_in_the_way_is_left_alone(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(ModelDirError, match="must not exist or be a model folder"):
        write_model_dir(tmp_path / "model", made())
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.parametrize("files", [[], ["notes.txt"], ["manifest.json"]])
def test_another_folder_in_the_way_is_left_alone(tmp_path, files):
    (tmp_path / "model").mkdir()
    for name in files:
        (tmp_path / "model" / name).write_text("{}")
    with pytest.raises(ModelDirError, match="Choose another path"):
        check_target(tmp_path / "model")
    with pytest.raises(ModelDirError, match="Choose another path"):
        write_model_dir(tmp_path / "model", made())
    assert sorted(os.listdir(tmp_path / "model")) == files
    assert os.listdir(tmp_path) == ["model"]


def test_a_model_folder_with_someones_notes_is_not_replaced(tmp_path):
    write_model_dir(tmp_path / "model", made())
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(ModelDirError, match="Choose another path"):
        write_model_dir(tmp_path / "model", made(2.0))
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"


def fails_at(call, function, error):
    """Raise at the given call and pass the others on."""
    calls = itertools.count(1)

    def wrapped(first, second):
        if next(calls) == call:
            raise error
        return function(first, second)

    return wrapped


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", [1, 4, 7])
@pytest.mark.parametrize("existing", [True, False])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, existing, call, error):
    if existing:
        write_model_dir(tmp_path / "model", made(1.0))
    monkeypatch.setattr(model_dir, "_write", fails_at(call, model_dir._write, error))
    with pytest.raises(type(error)):
        write_model_dir(tmp_path / "model", made(2.0))
    assert os.listdir(tmp_path) == (["model"] if existing else [])
    if existing:
        assert same(read_model_dir(tmp_path / "model"), made(1.0))


@pytest.mark.parametrize("call", [1, 2])
def test_a_swap_that_fails_puts_the_old_model_back(tmp_path, monkeypatch, call):
    write_model_dir(tmp_path / "model", made(1.0))
    path = type(tmp_path)
    failing = fails_at(call, path.rename, OSError(5, "Input/output error"))
    monkeypatch.setattr(path, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        write_model_dir(tmp_path / "model", made(2.0))
    assert os.listdir(tmp_path) == ["model"]
    assert same(read_model_dir(tmp_path / "model"), made(1.0))


def test_numbers_that_json_lacks_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_model_dir(tmp_path / "model", made(float("nan")))
    assert os.listdir(tmp_path) == []
