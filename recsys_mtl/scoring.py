"""Scores of tables of any size: parquet to parquet, whole or not at all, and on after a break."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from recsys_mtl.encoding.profile import Counts
from recsys_mtl.errors import EncodingError, SchemaError
from recsys_mtl.estimator import MultiTaskRanker
from recsys_mtl.loading import load
from recsys_mtl.model_dir import manifest_digest
from recsys_mtl.reading import scan
from recsys_mtl.serving.fusion import Fusion
from recsys_mtl.serving.run import Feed, ScoreOptions, Work, score_parts
from recsys_mtl.serving.scorer import Scorer
from recsys_mtl.serving.source import Part, Source, open_source
from recsys_mtl.serving.store import Record, Store, locked, place_of
from recsys_mtl.serving.summary import (
    ScoringSummary,
    features_of,
    notes_of,
    sum_absent,
    sum_counts,
)
from recsys_mtl.serving.writing import check_not_read
from recsys_mtl.tables import roots_of
from recsys_mtl.workers import Setup, Share, score_in_processes


def score_parquet(
    model: MultiTaskRanker | Scorer | str | Path,
    rows: Any,
    output: str | Path,
    *,
    users: Any = None,
    items: Any = None,
    where: str | None = None,
    keep: Sequence[str] = (),
    dtype: Literal["float32", "float16"] = "float32",
    fuse: Mapping[str, float] | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    memory_mib: int = 1024,
    part_rows: int = 1 << 20,
    on_error: Literal["stop", "skip-file"] = "stop",
    overwrite: bool = False,
    workers: int = 1,
    progress: bool = False,
) -> ScoringSummary:
    """Score rows in order into parquet: ids, columns carried along, a named column per score.

    Called again with the same arguments after a crash, it goes on behind the parts that are finished.
    The same input and model give the same bytes on one machine. With features of earlier rows all rows
    are read at once, to compute these, and a later call begins afresh: score day by day. Beside the output stands its manifest,
    ``OUTPUT.manifest.json``: what was scored by which model, and rows and hash of every part.

    Parameters
    ----------
    model
        Fitted, or a model folder.
    rows
        Parquet files, folders (also partitioned as ``day=2026-01-31``) or globs, each file once; or
        `Rows` or a table in memory, which a later call cannot go on with.
    output
        A file that ends in ``.parquet``, or a folder of parts. It appears when it is complete.
    users, items
        As in `scan`.
    where
        SQL condition on the interactions. On files it must look at one row at a time.
    keep
        Columns of the interactions to carry along.
    dtype
        Of the scores; float16 holds values up to 65,504.
    fuse
        Weights, above 0, by score. The column ``fused`` is then the sum of weight * ln(score).
    precision
        ``"bfloat16"`` computes all but the heads in half precision.
    memory_mib
        MiB that interactions may take beside the model, side tables and the libraries, at least 64.
    part_rows
        Rows of a part, at least, where a file has so many. A part is whole row groups of one file.
    on_error
        ``"skip-file"`` leaves out files that cannot be read or encoded, and lists them.
    overwrite
        Replace other scores, or the start of them; of the same scores, those where files were left
        out.
    workers
        Processes that each score parts, with one thread for the network. More than one needs a model
        folder and paths, and in a script the call has to stand under ``if __name__ == "__main__"``, which
        each process reads anew.
    progress
        Whether to show a progress bar.

    Raises
    ------
    EncodingError
        If a file cannot be read or encoded: the text names file and row group. If rows are too wide
        for the budget, or a score for float16.
    SchemaError
        If a column of the output would have a name twice, or an option needs what the model or rows
        are not.
    FileExistsError
        If the output is there already and is of another model, input or setting, or another run is
        writing it.
    OSError
        If the output cannot be written, as on a full disk.
    RuntimeError
        If a script calls this with workers where its processes would, too.
    """
    options = ScoreOptions(
        keep=keep,
        dtype=dtype,
        fuse=None if fuse is None else Fusion(dict(fuse)),
        precision=precision,
        memory_mib=memory_mib,
        part_rows=part_rows,
        on_error=on_error,
    )
    given = {"users": users, "items": items, "where": where}
    scorer, digest = _scorer(model)
    source = _source(scorer, rows, given, options)
    # What multiprocessing itself looks at, after the output would have been found locked.
    if workers > 1 and getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "score_parquet was called again by a process that it started: in a script, calls with"
            " workers above 1 must stand under: if __name__ == '__main__'."
        )
    if workers > 1 and not (isinstance(model, str | Path) and source.repeatable):
        raise SchemaError(
            "workers above 1 need a model folder and paths, and a schema without features of"
            " earlier rows: each process opens its own parts."
        )
    target = _target(output, source, rows)
    identity = {"input": source.identity(), "model": digest, "settings": options.identity()}
    work = Work.prepare(scorer, source, Store(target, identity), options)
    setup = Setup(str(model), rows, given, target, identity, options, workers)
    with locked(target):
        return _run(work, setup, overwrite=overwrite, progress=progress)


def _run(work: Work, setup: Setup, *, overwrite: bool, progress: bool) -> ScoringSummary:
    """Score what is not scored yet, and put the output in its place."""
    started = time.perf_counter()
    source, store = work.source, work.store
    whole = store.complete()
    # What was left out may be readable by now.
    again = overwrite or work.options.on_error == "stop"
    if whole is not None and not (whole["quarantined"] and again):
        store.settle()
        return _summary(work, whole, resumed=len(whole["parts"]), seconds=0.0)
    parts = source.parts(work.options.part_rows)
    broken = dict(source.broken)
    store.check(overwrite=overwrite)
    try:
        finished, chunk_rows = store.open(parts, work.chunk_rows(parts, setup.workers))
        left = [part for part in parts if part.number not in finished]
        num_rows = sum(part.stop - part.start for part in parts)
        with tqdm(
            total=sum(part.stop - part.start for part in left),
            unit="rows",
            unit_scale=True,
            disable=not progress,
            desc="score",
        ) as bar:
            if setup.workers > 1:
                share = Share(tuple(left), num_rows, chunk_rows)
                broken |= score_in_processes(setup, share, bar.update)
            else:
                feed = Feed(iter(left), broken)
                forward = work.scorer.forward(precision=work.options.precision, num_pairs=num_rows)
                score_parts(work, feed, forward, chunk_rows, bar.update)
        manifest = _finish(work, parts, broken)
    except BaseException:
        # Parts of an input that has changed are of no use to anyone.
        store.leave(keep=source.repeatable and source.identity() == store.identity["input"])
        raise
    return _summary(work, manifest, resumed=len(finished), seconds=time.perf_counter() - started)


def _source(scorer: Scorer, rows: Any, given: Mapping[str, Any], options: ScoreOptions) -> Source:
    """Open the rows, with the features of earlier rows where the schema has any."""
    skip = options.on_error == "skip-file"
    if scorer.as_of is None:
        return open_source(rows, **given, skip=skip)
    if skip:
        raise SchemaError(
            "on_error='skip-file' needs a schema without features of earlier rows: without a file's rows"
            " those of others would be wrong."
        )
    opened = scan(rows, users=given["users"], items=given["items"])
    if given["where"] is not None:
        opened = opened.filter(given["where"])
    return open_source(scorer.recalled(opened, keep=options.keep))


def _scorer(model: MultiTaskRanker | Scorer | str | Path) -> tuple[Scorer, str]:
    if isinstance(model, str | Path):
        digest = manifest_digest(model)
        return load(model).scorer, digest
    scorer = model if isinstance(model, Scorer) else model.scorer
    return scorer, _digest(scorer)


def _digest(scorer: Scorer) -> str:
    """Hash all that scores follow from."""
    values, arrays = scorer.encoder.state()
    digest = hashlib.sha256(scorer.schema.to_json().encode())
    digest.update(json.dumps(values, sort_keys=True).encode())
    digest.update(str(scorer.model).encode())
    for name, array in sorted(arrays.items()):
        digest.update(name.encode())
        digest.update(array.tobytes())
    for name, tensor in scorer.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _target(output: str | Path, source: Source, rows: Any) -> Path:
    """Check that writing the output touches nothing that is read."""
    target = Path(output).absolute()
    if target.suffix == ".parquet" and target.is_dir():
        raise IsADirectoryError(f"{target} must be a file to write. Found a folder.")
    sides = [side for side in (source.rows.users, source.rows.items) if side is not None]
    read = [("interactions", source.files or source.rows.paths)]
    read += [(side.name, side.paths) for side in sides]
    check_not_read(target, read)
    for root in roots_of(rows):
        if Path(root).resolve() in target.resolve().parents:
            raise FileExistsError(
                f"{target} would be read as interactions the next time, which are looked for in {root}."
                " Choose another output."
            )
    return target


def _finish(work: Work, parts: Sequence[Part], broken: Mapping[int, str]) -> dict[str, Any]:
    """Check that nothing is missing or changed, and put the output in its place."""
    wanted = [place_of(part) for part in parts if part.file not in broken]
    records = [one for one in work.store.records() if one["file"] not in broken]
    whole = len(records) == len(wanted) and all(
        record.items() >= place.items() for record, place in zip(records, wanted, strict=True)
    )
    if not whole:
        raise EncodingError(
            f"All {len(wanted)} parts must be there. Found {len(records)}: run the command again."
        )
    if not records:
        raise EncodingError(f"No file could be scored. The first: {next(iter(broken.values()))}")
    if work.source.repeatable and work.source.identity() != work.store.identity["input"]:
        raise EncodingError(
            "The input must stay as it is while it is scored. Found it changed: run the command again."
        )
    return work.store.finish(records, _about(work, records, broken))


def _about(work: Work, records: Sequence[Record], broken: Mapping[int, str]) -> dict[str, Any]:
    files = work.source.files
    return {
        "rows_in": sum(record["stop"] - record["start"] for record in records),
        "rows_out": sum(record["rows"] for record in records),
        "quarantined": [[files[number], reason] for number, reason in sorted(broken.items())],
        "counts": {name: found.to_dict() for name, found in sum_counts(records).items()},
        "absent": sum_absent(records),
    }


def _summary(
    work: Work, manifest: Mapping[str, Any], *, resumed: int, seconds: float
) -> ScoringSummary:
    counts = {name: Counts.from_dict(found) for name, found in manifest["counts"].items()}
    return ScoringSummary(
        output=work.store.target,
        rows_in=manifest["rows_in"],
        rows_out=manifest["rows_out"],
        parts=len(manifest["parts"]),
        resumed=resumed,
        seconds=seconds,
        features=features_of(counts, work.scorer.encoder.profile),
        quarantined=tuple((file, reason) for file, reason in manifest["quarantined"]),
        notes=notes_of(manifest["absent"]),
    )
