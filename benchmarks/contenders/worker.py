"""A contender in a process of its own: it does one thing at a time, when told to.

Each line read is a request in JSON, each line written an answer; what libraries print goes to the
standard error stream. The module is free of the package: peers run it where that is not installed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

BATCH, DIM = 4096, 16
NUM_EXPERTS, EXPERT_DIMS, TOWER_DIM = 8, (256, 128), 64
BINARY_LABELS = ("interest", "click")
LABELS = (*BINARY_LABELS, "rating")


@dataclass(frozen=True)
class Job:
    """What a worker is to train on, and how.

    Parameters
    ----------
    train, test
        Parquet files.
    threads
        Threads of torch; None: its own choice.
    options
        Settings of the contender's own.
    largest
        Rows that the largest table is declared to have; None: as many as the data need.
    """

    train: str
    test: str
    threads: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    largest: int | None = None


class Contender(Protocol):
    """What every worker can be asked to do; what else there is, its class says."""

    def prepare(self) -> None:
        """Make ready what is not timed: encoders, a model."""


def serve(make: Callable[[Job], Contender]) -> None:
    """Answer requests until the input ends: seconds, CPU seconds, peak memory, and the result.

    Parameters
    ----------
    make
        Makes the contender for the job on the command line, and imports its library.
    """
    import torch

    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    job = Job(**json.loads(sys.argv[1]))
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    contender = make(job)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        cpu, wall = time.process_time(), time.perf_counter()
        result = getattr(contender, request.pop("do"))(**request)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        answer = {"wall": wall, "cpu": cpu, "peak_mb": memory_mb("VmHWM"), "result": result}
        print(json.dumps(answer), file=answers, flush=True)


def memory_mb(name: str) -> float:
    """Return the memory of this process: ``"VmRSS"`` as it is, ``"VmHWM"`` as it was at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def reset_peak() -> None:
    """Have ``"VmHWM"`` tell the most memory from now on."""
    Path("/proc/self/clear_refs").write_text("5")
