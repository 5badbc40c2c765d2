"""A model folder: JSON and safetensors, hashed, written whole or not at all; loading runs no code."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from recsys_mtl.encoding import HASH_VERSION
from recsys_mtl.encoding.entry import sync_path
from recsys_mtl.encoding.learning import Array
from recsys_mtl.errors import ModelDirError
from recsys_mtl.metrics import Measurement, Report

FORMAT_VERSION = 3
_FORMAT = "recsys_mtl model"
_MANIFEST = "manifest.json"
_JSON = ("schema", "model", "encoder", "metrics")
_FILES = (*(f"{name}.json" for name in _JSON), "encoder.safetensors", "weights.safetensors")
_TRAINING = "training.safetensors"
_AS_OF = "as_of.parquet"
_OPTIONAL = (_TRAINING, _AS_OF)


@dataclass(frozen=True)
class TrainingTensors:
    """The state of optimizers, in memory."""

    values: Mapping[str, torch.Tensor]

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Return them."""
        return self.values


@dataclass(frozen=True)
class TrainingFile:
    """The state of optimizers in a model folder, which scoring never reads.

    Parameters
    ----------
    file
        Where it is.
    listed
        Its size and hash in the manifest that the folder had when it was opened.
    """

    file: Path
    listed: Mapping[str, Any]

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Read and check them.

        Raises
        ------
        ModelDirError
            If the file is gone, or not the one that the folder had.
        """
        return _tensors(self.file.parent, _read_listed(self.file, {_TRAINING: self.listed}))


Training = TrainingTensors | TrainingFile


@dataclass(frozen=True)
class ModelDir:
    """The contents of a model folder, as plain values.

    Parameters
    ----------
    schema, model, encoder, metrics
        JSON values: the schema, the model's settings, what the encoder learned, validation metrics.
    encoder_arrays
        Arrays of the encoder.
    weights
        The network's state, on the CPU.
    training
        The state of its optimizers, for warm starts; a folder may lack it.
    as_of
        What is known of earlier rows, a parquet file's bytes, if the schema has features of them.
    """

    schema: dict[str, Any]
    model: dict[str, Any]
    encoder: dict[str, Any]
    metrics: dict[str, Any]
    encoder_arrays: Mapping[str, Array]
    weights: Mapping[str, torch.Tensor]
    training: Training | None = None
    as_of: bytes | None = None


def write_model_dir(path: str | Path, contents: ModelDir) -> None:
    """Write a model folder; a reader sees the old one or the new one, never a part.

    Raises
    ------
    ModelDirError
        If the path holds something that is not a model folder: it is left alone.
    """
    target = Path(path).resolve()
    check_target(target)
    files = {f"{name}.json": _dump(getattr(contents, name)) for name in _JSON}
    files["encoder.safetensors"] = save_arrays(
        {name: np.ascontiguousarray(array) for name, array in contents.encoder_arrays.items()}
    )
    files["weights.safetensors"] = _saved(contents.weights)
    if contents.training is not None:
        files[_TRAINING] = _saved(contents.training.tensors())
    if contents.as_of is not None:
        files[_AS_OF] = contents.as_of
    files[_MANIFEST] = _dump(_manifest(files))
    target.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        undo.callback(shutil.rmtree, fresh, ignore_errors=True)
        for name, data in files.items():
            _write(fresh / name, data)
        sync_path(fresh)
        fresh.chmod(0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            undo.callback(shutil.rmtree, old, ignore_errors=True)
            undo.callback(_put_back, old / "old", target)
            target.rename(old / "old")
        fresh.rename(target)
        sync_path(target.parent)


def check_target(path: str | Path) -> None:
    """Check that a model can be written to the path, before the work of training one.

    Raises
    ------
    ModelDirError
        If the path holds something that is not a model folder, or one with files beside the model's.
    """
    target = Path(path)
    if target.exists() and not _is_model_dir(target):
        raise ModelDirError(
            f"{target} must not exist or be a model folder, which is then replaced. Found something"
            " else. Choose another path."
        )


def read_model_dir(path: str | Path) -> ModelDir:
    """Read a model folder and check every byte of it.

    Raises
    ------
    ModelDirError
        If the folder is missing a file, has one that is not listed, was changed since it was written,
        or has a format this version does not know. The training state is read, and checked, later.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    found = {entry.name for entry in folder.iterdir()}
    listed = manifest["files"].get(_TRAINING)
    optional = [name for name in _OPTIONAL if name in manifest["files"]]
    expected = {*_FILES, _MANIFEST, *optional}
    if found != expected:
        odd = sorted(found ^ expected)
        raise ModelDirError(
            f"{folder} must hold the files of its manifest. Missing or extra: {odd}."
        )
    data = {name: _read_listed(folder / name, manifest["files"]) for name in _FILES}
    values = {name: json.loads(data[f"{name}.json"]) for name in _JSON}
    try:
        arrays = load_arrays(data["encoder.safetensors"])
    except SafetensorError as error:
        raise ModelDirError(f"{folder} holds a damaged safetensors file: {error}.") from error
    weights = _tensors(folder, data["weights.safetensors"])
    training = None if listed is None else TrainingFile(folder.resolve() / _TRAINING, listed)
    as_of = _read_listed(folder / _AS_OF, manifest["files"]) if _AS_OF in optional else None
    return ModelDir(
        **values, encoder_arrays=arrays, weights=weights, training=training, as_of=as_of
    )


def manifest_digest(path: str | Path) -> str:
    """Return the hash of a model folder's manifest, which holds those of its files.

    Raises
    ------
    ModelDirError
        If there is no model folder, or its manifest was changed.
    """
    return _sha256(_dump(_read_manifest(Path(path))))


def _saved(tensors: Mapping[str, torch.Tensor]) -> bytes:
    found = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return bytes(save_tensors(found))


def _tensors(folder: Path, data: bytes) -> dict[str, torch.Tensor]:
    try:
        return dict(load_tensors(data))
    except SafetensorError as error:
        raise ModelDirError(f"{folder} holds a damaged safetensors file: {error}.") from error


def _manifest(files: Mapping[str, bytes]) -> dict[str, Any]:
    listed = {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        "hash_version": HASH_VERSION,
        "package_version": metadata.version("recsys_mtl"),
        "files": {
            name: {"sha256": _sha256(data), "size": len(data)} for name, data in files.items()
        },
    }
    return listed | {"sha256": _sha256(_dump(listed))}


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ModelDirError(f"{folder} must be a model folder. Found no such folder.")
    file = folder / _MANIFEST
    if file.is_symlink() or not file.is_file():
        raise ModelDirError(f"{folder} must be a model folder. It has no plain file {_MANIFEST}.")
    data = file.read_bytes()
    try:
        manifest = json.loads(data)
        digest = manifest.pop("sha256")
        whole = manifest["format"] == _FORMAT
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelDirError(f"{file} is damaged: {error!r}.") from error
    if not whole:
        raise ModelDirError(f"{folder} must be a model folder. Found {manifest['format']!r}.")
    for name, known in (("format_version", FORMAT_VERSION), ("hash_version", HASH_VERSION)):
        if manifest.get(name) != known:
            raise ModelDirError(
                f"{folder} has {name} {manifest.get(name)!r}; this version reads {known}."
                " Load it with the package version that wrote it"
                f" ({manifest.get('package_version')}), or train again."
            )
    if digest != _sha256(_dump(manifest)) or data != _dump(manifest | {"sha256": digest}):
        raise ModelDirError(f"{file} was changed after it was written.")
    return dict(manifest)


def _read_listed(file: Path, listed: Mapping[str, Any]) -> bytes:
    if file.is_symlink() or not file.is_file():
        raise ModelDirError(f"{file} must be a plain file.")
    data = file.read_bytes()
    entry = listed.get(file.name, {})
    if len(data) != entry.get("size") or _sha256(data) != entry.get("sha256"):
        raise ModelDirError(
            f"{file} was changed after it was written: its SHA-256 is not the manifest's."
            " Copy the model folder again from where it was made."
        )
    return data


def _is_model_dir(path: Path) -> bool:
    """Tell whether the folder is a model and nothing else, so that replacing it loses nothing."""
    try:
        if {entry.name for entry in path.iterdir()} - {*_FILES, *_OPTIONAL, _MANIFEST}:
            return False
        return bool(json.loads((path / _MANIFEST).read_bytes())["format"] == _FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _put_back(old: Path, target: Path) -> None:
    if old.exists() and not target.exists():
        old.rename(target)


def _dump(value: Any) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode() + b"\n"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(file: Path, data: bytes) -> None:
    with file.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def metrics_to_json(
    best_epoch: int, history: pl.DataFrame, report: Report | None
) -> dict[str, Any]:
    """Return how a run went as JSON values, for `ModelDir.metrics`."""
    return {
        "best_epoch": best_epoch,
        "history": _finite(history.to_dicts()),
        "validation": None if report is None else _finite(report.to_frame().to_dicts()),
        "notes": [] if report is None else list(report.notes),
    }


def history_from(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rebuild the table of epochs; metrics that were undefined are NaN again."""
    frame = pl.DataFrame(rows, infer_schema_length=None)
    return frame.with_columns(
        pl.col(name).cast(pl.Float64).fill_null(float("nan"))
        for name in frame.columns
        if frame[name].null_count() and not frame.schema[name].is_nested()
    )


def report_from(metrics: dict[str, Any]) -> Report | None:
    """Rebuild the validation report, if there was one."""
    if metrics["validation"] is None:
        return None
    measured = [
        Measurement(**{**row, "value": float("nan") if row["value"] is None else row["value"]})
        for row in metrics["validation"]
    ]
    return Report(tuple(measured), tuple(metrics["notes"]))


def _finite(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace NaN by null: JSON has no NaN."""
    return [
        {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}
        for row in rows
    ]
