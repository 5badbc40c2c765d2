"""Load a fitted ranker from its folder."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from recsys_mtl.encoding import warm
from recsys_mtl.estimator import MultiTaskRanker
from recsys_mtl.model_dir import history_from, read_model_dir, report_from
from recsys_mtl.recall import from_bytes
from recsys_mtl.serving import Scorer
from recsys_mtl.settings import find_device, rebuild


def load(path: str | Path, *, device: str = "auto") -> MultiTaskRanker:
    """Load a model folder that `MultiTaskRanker.save` wrote; no code in it is run.

    The kernels that encode rows are made ready here, so that the first request does not wait for them.

    Parameters
    ----------
    path
        The folder.
    device
        Where the model is to lie; any, whatever it was trained on.

    Raises
    ------
    ModelDirError
        If the folder is damaged, incomplete, changed or of an unknown format.
    """
    where = find_device(device)
    found = read_model_dir(path)
    warm()
    encoder, settings, model = rebuild(found, path)
    given = {one.name: getattr(settings, one.name) for one in fields(settings)}
    ranker = MultiTaskRanker(encoder.schema, device=device, **given)
    state = from_bytes(found.as_of, encoder.schema, path)
    ranker.scorer_ = Scorer(encoder.schema, encoder, model.to(where), state)
    ranker.settings_, ranker.training_ = settings, found.training
    ranker.warm_start_notes_ = []
    ranker.best_epoch_ = int(found.metrics["best_epoch"])
    ranker.history_ = history_from(found.metrics["history"])
    ranker.valid_report_ = report_from(found.metrics)
    return ranker
