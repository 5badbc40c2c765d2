"""The command `recsys-mtl`: train, evaluate, compare, score, topk, observe, describe, collisions."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer

if TYPE_CHECKING:
    from recsys_mtl.warm import Renamed

P = ParamSpec("P")

app = typer.Typer(
    help="Multi-task ranking: train on tables, score tables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

ConfigFile = Annotated[Path, typer.Argument(help="TOML file: tables, schema, model, training.")]
ModelFolder = Annotated[Path, typer.Argument(help="Model folder.")]
Table = Annotated[str, typer.Argument(help="Interactions: parquet file, folder or glob.")]
Users = Annotated[str | None, typer.Option(help="Users table (parquet).")]
Items = Annotated[str | None, typer.Option(help="Items table (parquet).")]
Top = Annotated[
    int | None, typer.Option(min=1, help="Measure each user's ranked list of that length too.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON rows instead.")]
Where = Annotated[str | None, typer.Option(help="SQL condition: \"split = 'test'\".")]


def _plain_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Print what a user can mend as one line and exit with 2; let defects show their traceback."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        from recsys_mtl.errors import EncodingError, ModelDirError, SchemaError

        known = (
            *(EncodingError, ModelDirError, SchemaError),
            *(FloatingPointError, ImportError, OSError),
        )
        try:
            command(*args, **kwargs)
        except known as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error

    return wrapped


@app.callback()
@_plain_errors
def prepare(
    modules: Annotated[
        list[str] | None,
        typer.Option("--import", help="Module to import first: one with structures of your own."),
    ] = None,
) -> None:
    """Multi-task ranking: train on tables, score tables."""
    if modules:
        sys.path.insert(0, str(Path.cwd()))
    for name in modules or ():
        importlib.import_module(name)


@app.command()
@_plain_errors
def train(
    config: ConfigFile,
    model: Annotated[Path, typer.Option("--model", "-m", help="Folder to write.")] = Path("model"),
    checkpoints: Annotated[
        Path | None,
        typer.Option(help="Folder for the run's state; the same command goes on after a break."),
    ] = None,
    checkpoint_minutes: Annotated[float, typer.Option(help="Minutes between two of them.")] = 10.0,
    warm_start: Annotated[
        Path | None, typer.Option(help="Model folder to go on from: its weights and optimizers.")
    ] = None,
    renamed: Annotated[
        list[str] | None,
        typer.Option(help="A column of that model that has a new name by now, as OLD=NEW."),
    ] = None,
) -> None:
    """Train a model as CONFIG says and save it."""
    from recsys_mtl.config import check_labels, read_config
    from recsys_mtl.model_dir import check_target
    from recsys_mtl.training import Checkpoints, finish_processes

    settings = read_config(config)
    check_target(model)
    rows = settings.rows()
    for name, part in rows.items():
        check_labels(part, settings.schema, path=f"tables.{name}")
    ranker = settings.ranker()
    kept = None
    if checkpoints is not None:
        kept = Checkpoints(str(checkpoints), every_minutes=checkpoint_minutes)
    ranker.fit(
        rows["train"],
        valid=rows.get("valid"),
        refit=settings.run.refit,
        checkpoints=kept,
        cache=settings.run.cache,
        warm_start=_renamed(warm_start, renamed or []),
    )
    if not hasattr(ranker, "scorer_"):  # one of several processes, of which the first has the model
        finish_processes()
        if kept is not None:
            kept.clear()
        os._exit(0)  # threads of the group may abort an orderly exit, and with it the whole run
    for note in ranker.warm_start_notes_:
        typer.echo(f"warm start: {note}")
    ranker.save(model)
    if kept is not None:
        kept.clear()
    typer.echo(f"model: {model}")
    if ranker.valid_report_ is not None:
        typer.echo(f"validation, epoch {ranker.best_epoch_}:\n{ranker.valid_report_}")
    if "test" in rows:
        typer.echo(f"test:\n{ranker.evaluate(rows['test'])}")
    finish_processes()


@app.command()
@_plain_errors
def evaluate(
    model: ModelFolder,
    table: Table,
    users: Users = None,
    items: Items = None,
    where: Where = None,
    by: Annotated[
        str | None, typer.Option(help="Column of the interactions: measure its slices too.")
    ] = None,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Give 95 % intervals, by drawing users again.")
    ] = False,
    top: Top = None,
    json: AsJson = False,
) -> None:
    """Measure MODEL on a TABLE with labels."""
    from recsys_mtl.loading import load

    rows = _rows(table, users, items, where)
    report = load(model).evaluate(rows, by=by, intervals=intervals, top=top)
    typer.echo(report.to_frame().write_ndjson() if json else report)


@app.command()
@_plain_errors
def compare(
    model_a: Annotated[Path, typer.Argument(help="Model folder, or parquet file of scores.")],
    model_b: Annotated[Path, typer.Argument(help="The same; one of the two must be a folder.")],
    table: Table,
    users: Users = None,
    items: Items = None,
    where: Where = None,
    top: Top = None,
    replicates: Annotated[int, typer.Option(min=1, help="Draws of users.")] = 1000,
    json: AsJson = False,
) -> None:
    """Say of every task whether MODEL_A is better than MODEL_B on a TABLE with labels."""
    from recsys_mtl.comparing import compare

    names = [model_a.name, model_b.name]
    if names[0] == names[1]:
        names = [str(model_a), str(model_b)]
    if names[0] == names[1]:
        names[1] += " (again)"
    models = dict(zip(names, (model_a, model_b), strict=True))
    rows = _rows(table, users, items, where)
    found = compare(rows, models, top=top, replicates=replicates)
    typer.echo(found.to_frame().write_ndjson() if json else found)


@app.command()
@_plain_errors
def score(
    model: ModelFolder,
    table: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Parquet files, folders or globs.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File that ends in .parquet, or folder of parts.")
    ],
    users: Users = None,
    items: Items = None,
    where: Where = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="Column to carry along; may be given again.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of scores: float32 or float16.")] = "float32",
    fuse: Annotated[
        str | None, typer.Option(help='Weights of a fused score: "ctr=1,interest=0.5".')
    ] = None,
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    memory_mib: Annotated[int, typer.Option(help="MiB for rows beside the model.")] = 1024,
    part_rows: Annotated[int, typer.Option(help="Rows of a part, at least.")] = 1 << 20,
    on_error: Annotated[
        str, typer.Option(help="stop, or skip-file: leave out bad files, exit with 3.")
    ] = "stop",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace other scores.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that score parts.")] = 1,
) -> None:
    """Score INPUT: its rows in order, the ids and one column per task; after a break, go on."""
    from recsys_mtl.scoring import score_parquet
    from recsys_mtl.serving import Fusion

    with _interruptible("the same command goes on behind the finished parts that are kept"):
        summary = score_parquet(
            model,
            table if len(table) > 1 else table[0],
            output,
            users=users,
            items=items,
            where=where,
            keep=keep or (),
            dtype=dtype,  # type: ignore[arg-type] # checked with the other options
            fuse=None if fuse is None else Fusion.parse(fuse).weights,
            precision=precision,  # type: ignore[arg-type]
            memory_mib=memory_mib,
            part_rows=part_rows,
            on_error=on_error,  # type: ignore[arg-type]
            overwrite=overwrite,
            workers=workers,
            progress=sys.stderr.isatty(),
        )
    typer.echo(summary)
    if summary.quarantined:
        raise typer.Exit(3)


@contextmanager
def _interruptible(left: str) -> Iterator[None]:
    """Have SIGTERM end the command as Ctrl-C does: what is half written is removed; say what is left."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"interrupted: {left}", err=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@app.command()
@_plain_errors
def observe(model: ModelFolder, table: Table, where: Where = None) -> None:
    """Let features of earlier rows in MODEL know a TABLE with labels, such as that of a day."""
    from recsys_mtl.loading import load

    ranker = load(model, device="cpu").observe(_rows(table, None, None, where))
    ranker.save(model)
    typer.echo(f"model: {model}")


@app.command("topk")
@_plain_errors
def top_k(
    model: ModelFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="Parquet file to write.")],
    by: Annotated[str, typer.Option(help="Key that gets the best rows, such as user_id.")],
    score: Annotated[str, typer.Option(help="What ranks: a score, or SQL of several.")],
    candidates: Annotated[
        str | None, typer.Argument(help="Pairs (parquet); by default all users with all items.")
    ] = None,
    k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Rows for each key.")] = 100,
    users: Users = None,
    items: Items = None,
    where: Where = None,
    exclude: Annotated[str | None, typer.Option(help="Pairs to leave out (parquet).")] = None,
    context: Annotated[
        str | None, typer.Option(help='For all pairs, the context as JSON: {"hour": 12}.')
    ] = None,
) -> None:
    """Write the best items of every user, or the best users of every item."""
    from recsys_mtl.errors import SchemaError
    from recsys_mtl.loading import load
    from recsys_mtl.serving import top_k_to_parquet

    try:
        values = None if context is None else dict(loads(context))
    except (TypeError, ValueError) as error:
        raise SchemaError(f"--context must be a JSON object. Found {context!r}.") from error
    if candidates is None and where is not None:
        raise SchemaError(
            "--where needs CANDIDATES: all pairs have no interactions to choose from."
        )
    given = candidates is not None
    scorer = load(model).scorer
    with _interruptible("run the same command again"):
        rows = top_k_to_parquet(
            scorer,
            output,
            _rows(str(candidates), users, items, where) if given else None,
            k=k,
            by=by,
            score=score,
            users=None if given else users,
            items=None if given else items,
            exclude=exclude,
            context=values,
            progress=sys.stderr.isatty(),
        )
    typer.echo(f"{rows:,} rows: {output}")


@app.command()
@_plain_errors
def describe(model: ModelFolder) -> None:
    """Say what MODEL reads, predicts and consists of."""
    from recsys_mtl.describe import describe_model
    from recsys_mtl.loading import load

    typer.echo(describe_model(load(model, device="cpu")))


@app.command()
@_plain_errors
def collisions(
    model: ModelFolder,
    table: Table,
    users: Users = None,
    items: Items = None,
    where: Where = None,
) -> None:
    """Say which ids of a TABLE share a row in MODEL, and how much of the traffic that touches."""
    from recsys_mtl.describe import describe_collisions
    from recsys_mtl.encoding import collision_report
    from recsys_mtl.loading import load

    ranker = load(model, device="cpu")
    report = collision_report(
        ranker.scorer.encoder,
        ranker.scorer.recalled(_rows(table, users, items, where)),
        embedding_dim=ranker.settings_.embedding_dim,
    )
    typer.echo(describe_collisions(report))


def _renamed(model: Path | None, pairs: list[str]) -> Path | Renamed | None:
    """Return what a run goes on from, with the new names of its columns."""
    from recsys_mtl.errors import SchemaError
    from recsys_mtl.warm import Renamed

    columns = dict(pair.partition("=")[::2] for pair in pairs)
    if not columns:
        return model
    if model is None or not all(columns.values()):
        raise SchemaError(f"--renamed must be OLD=NEW, beside --warm-start. Found {pairs}.")
    return Renamed(model, columns=columns)


def _rows(
    table: str | list[str], users: str | None, items: str | None, condition: str | None
) -> object:
    from recsys_mtl.config import where
    from recsys_mtl.reading import scan

    rows = scan(table, users=users, items=items)
    return rows if condition is None else where(rows, condition, path="--where")


def main() -> None:
    """Run the command line."""
    # Idle OpenMP workers burn a core for long by default; where another process shares the cores,
    # every torch operation then waits for them. A shorter spin costs nothing on an idle machine. It
    # must be set before torch is loaded, so the commands import their rooms when they run.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    app()


if __name__ == "__main__":
    main()
