"""Workers as the driver sees them: processes that it starts, asks and compares."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.contenders.worker import Job
from benchmarks.measure import Timing

ROOT = Path(__file__).resolve().parents[1]
PEERS = ("torch-rechub==0.9.0", "deepctr-torch==0.3.0", "pyarrow")


class WorkerError(RuntimeError):
    """A worker ended before it answered; the message holds the last lines it wrote."""


@dataclass
class Worker:
    """A running contender.

    Parameters
    ----------
    python
        Interpreter that has what it imports.
    script
        File under ``benchmarks/contenders``.
    job
        What it works on.
    """

    python: Path
    script: str
    job: Job
    peak_mb: float = 0.0
    _process: subprocess.Popen[str] = field(init=False)

    def __enter__(self) -> Self:
        path = ROOT / "benchmarks" / "contenders" / self.script
        threads = self.job.threads
        chosen = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [str(self.python), str(path), json.dumps(asdict(self.job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | chosen,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._log.close()

    def wait_until_ready(self) -> None:
        """Wait for its imports."""
        self._answer()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have it do something; return seconds, CPU seconds and the result."""
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        answer = self._answer()
        self.peak_mb = answer["peak_mb"]
        return answer

    def _answer(self) -> dict[str, Any]:
        line = "" if self._process.stdout is None else self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            last = self._log.read().strip().splitlines()[-3:]
            raise WorkerError(f"{self.script} ended: {' | '.join(last)}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def started(workers: Mapping[str, Worker]) -> dict[str, Worker]:
    """Return the workers that could import what they need; print why others are left out."""
    ready: dict[str, Worker] = {}
    for name, worker in workers.items():
        try:
            worker.wait_until_ready()
        except WorkerError as error:
            print(f"left out: {name} ({error})")
        else:
            ready[name] = worker
    return ready


def take_turns(
    workers: Mapping[str, Worker], requests: Sequence[dict[str, Any]], *, warm: int
) -> dict[str, Timing]:
    """Ask all workers in turn, request by request; the first `warm` rounds do not count."""
    timings = {name: Timing() for name in workers}
    for number, request in enumerate(requests):
        for name, worker in workers.items():
            answer = worker.ask(**request)
            if number >= warm:
                timings[name].wall.append(answer["wall"])
                timings[name].cpu.append(answer["cpu"])
    return timings


def peers_python(folder: Path) -> Path | None:
    """Return the interpreter of the peers' environment, which the first call makes."""
    python = folder / "bin" / "python"
    done = folder / "installed"
    if done.exists() and done.read_text() == " ".join(PEERS):
        return python
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", *constraints, *PEERS], check=True
        )
    except subprocess.CalledProcessError as error:
        print(f"left out: all peers (their installation ended with {error.returncode})")
        return None
    done.write_text(" ".join(PEERS))
    return python
