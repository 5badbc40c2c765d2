"""Workers: several processes of one machine that score parts of one run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from recsys_mtl.errors import EncodingError
from recsys_mtl.loading import load
from recsys_mtl.serving.run import Feed, ScoreOptions, Told, Work, score_parts
from recsys_mtl.serving.source import Part, open_source
from recsys_mtl.serving.store import Store

_POLL = 0.1
_Answer = tuple[str, Any]


@dataclass(frozen=True)
class Setup:
    """What a process needs to score its share.

    Parameters
    ----------
    model
        Model folder.
    rows
        Paths.
    given
        ``users``, ``items`` and ``where`` of `open_source`.
    target, identity, options
        As in `Store` and `Work`.
    workers
        Processes at most.
    """

    model: str
    rows: Any
    given: dict[str, Any]
    target: Path
    identity: dict[str, Any]
    options: ScoreOptions
    workers: int


@dataclass(frozen=True)
class Share:
    """What all processes together have to score.

    Parameters
    ----------
    parts
        What is left.
    num_rows
        Rows of the whole run.
    chunk_rows
        Rows that each reads at once.
    """

    parts: tuple[Part, ...]
    num_rows: int
    chunk_rows: int


@dataclass(frozen=True)
class _Shared:
    """Counters that all processes read and write, and where they answer."""

    taken: Any
    rows: Any
    answers: SimpleQueue[_Answer]


def score_in_processes(setup: Setup, share: Share, told: Told) -> dict[int, str]:
    """Score all parts; return the files left out, and why.

    Each process takes the next part when it is ready to read one. If this process ends, so do they.

    Raises
    ------
    EncodingError, OSError
        What a process raised.
    ChildProcessError
        If a process was killed.
    """
    context = multiprocessing.get_context("spawn")
    shared = _Shared(context.Value("q", 0), context.Value("q", 0), context.SimpleQueue())
    count = max(1, min(setup.workers, len(share.parts)))
    processes = [
        context.Process(target=_work, args=(setup, share, shared), daemon=True)
        for _ in range(count)
    ]
    try:
        for process in processes:
            process.start()
        return _wait(processes, shared, told)
    finally:
        for process in processes:
            if process.pid is not None:  # it was started
                process.kill()
                process.join()


def _wait(processes: list[Any], shared: _Shared, told: Told) -> dict[int, str]:
    broken: dict[int, str] = {}
    answered = seen = 0
    while answered < len(processes):
        time.sleep(_POLL)
        now = shared.rows.value
        told(now - seen)
        seen = now
        ended = sum(not process.is_alive() for process in processes)
        while not shared.answers.empty():
            kind, found = shared.answers.get()
            if kind == "error":
                raise found
            broken |= found
            answered += 1
        killed = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
        if killed and ended > answered:
            raise ChildProcessError(
                f"All processes must live until their parts are scored. Found one that ended with"
                f" {killed[0]}{', for what it wrote above' if killed[0] > 0 else ''}: run the same command"
                " again, it goes on behind the finished parts."
            )
    return broken


def _work(setup: Setup, share: Share, shared: _Shared) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes itself
    threading.Thread(
        target=_end_with, args=(multiprocessing.parent_process(),), daemon=True
    ).start()
    try:
        options = setup.options
        source = open_source(setup.rows, **setup.given, skip=options.on_error == "skip-file")
        if source.identity() != setup.identity["input"]:
            raise EncodingError(
                "The input must stay as it is while it is scored. Found it changed: run the command again."
            )
        scorer = load(setup.model).scorer
        work = Work.prepare(scorer, source, Store(setup.target, setup.identity), options)
        feed = Feed(_tickets(share.parts, shared.taken), dict(source.broken))
        forward = scorer.forward(
            precision=options.precision, num_pairs=share.num_rows, num_threads=1
        )

        def told(rows: int) -> None:
            with shared.rows.get_lock():
                shared.rows.value += rows

        score_parts(work, feed, forward, share.chunk_rows, told)
    except (EncodingError, OSError) as error:
        kind = OSError if isinstance(error, OSError) else EncodingError
        shared.answers.put(("error", kind(str(error))))
    else:
        shared.answers.put(("broken", feed.broken))


def _tickets(parts: tuple[Part, ...], taken: Any) -> Iterator[Part]:
    """Yield parts that no other process has taken."""
    while True:
        with taken.get_lock():
            number = taken.value
            taken.value += 1
        if number >= len(parts):
            return
        yield parts[number]


def _end_with(parent: BaseProcess | None) -> None:
    if parent is not None:
        parent.join()
        os._exit(1)
