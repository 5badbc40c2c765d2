"""Interleaved rounds, medians and a description of the machine, for all benchmarks."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recsys_mtl.compiled import compiled

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
_SPINS = 200_000_000
_COPIED_WORDS = 8_000_000


@dataclass
class Timing:
    """Seconds of each round: on the clock, and of CPU time of all threads."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def wall_median(self) -> float:
        """Median seconds on the clock."""
        return statistics.median(self.wall)

    @property
    def cpu_median(self) -> float:
        """Median seconds of CPU time."""
        return statistics.median(self.cpu)


@dataclass(frozen=True)
class Contender:
    """One way to do a piece of work.

    Parameters
    ----------
    run
        Does it.
    count
        How much of the work one run does, in the race's units.
    bar
        How much faster the race's first contender is meant to be, in words.
    """

    run: Callable[[], object]
    count: int
    bar: str = ""


@dataclass
class Race:
    """Contenders for the same work; the first is ours.

    Parameters
    ----------
    title
        What the work is.
    contenders
        By name.
    bytes_moved
        Bytes that the first contender must at least read and write in a run.
    """

    title: str
    contenders: dict[str, Contender]
    bytes_moved: int


def print_race(race: Race, *, rounds: int) -> None:
    """Time all contenders and print rates and how many times faster the first is.

    Ratios of CPU time compare with the first contender, ratios on the clock with the second where
    its name says that it has two threads.
    """
    source, target = np.ones((2, _COPIED_WORDS))  # written to: pages of zeros would share one page
    runs = {name: one.run for name, one in race.contenders.items()}
    timings = interleave(runs | {"copy": lambda: np.copyto(target, source)}, rounds=rounds)
    first, *others = race.contenders
    fastest = others[0] if others and others[0].endswith("2 threads") else first
    unit = race.contenders[first].count
    rows = []
    for name, one in race.contenders.items():
        found, per = timings[name], one.count / unit
        rows.append(
            [
                name,
                f"{one.count / found.cpu_median / 1e6:.2f}",
                f"{one.count / found.wall_median / 1e6:.2f}",
                f"{times_faster(timings[first].cpu, found.cpu, per=per):.2f}",
                f"{times_faster(timings[fastest].wall, found.wall, per=per):.2f}",
                one.bar,
            ]
        )
    header = ["contender", "M/s of CPU", "M/s, clock", "first: x CPU", "x clock", "bar"]
    print_table(race.title, header, rows)
    copied = 2 * source.nbytes
    share = times_faster(timings[first].cpu, timings["copy"].cpu, per=copied / race.bytes_moved)
    print(
        f"{race.bytes_moved / timings[first].cpu_median / 1e9:.1f} GB/s of CPU read and written:"
        f" {share:.2f} of np.copyto's {copied / timings['copy'].cpu_median / 1e9:.1f} GB/s"
    )


def interleave(contenders: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, Timing]:
    """Time all contenders in turn, `rounds` times over, after a round that does not count.

    A busy machine then slows all of them alike, and ratios within a round can be trusted. Each round
    has an order of its own: whoever always follows the one that frees most memory would pay for it.
    """
    timings = {name: Timing() for name in contenders}
    chance = random.Random(0)
    for number in range(rounds + 1):
        for name in chance.sample(list(contenders), len(contenders)):
            run = contenders[name]
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if number:
                timings[name].wall.append(wall)
                timings[name].cpu.append(cpu)
    return timings


def times_faster(ours: Sequence[float], other: Sequence[float], *, per: float = 1.0) -> float:
    """Return the median over rounds of `other / ours`; `per` is other's work in units of ours."""
    return statistics.median(b / (per * a) for a, b in zip(ours, other, strict=True))


def optional(module: str, why: str) -> Any | None:
    """Import a package that a comparison needs; print what is left out where it is absent."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        print(f"left out: {why} ({error})")
        return None


def print_machine(*packages: str) -> None:
    """Print what the figures below were taken on."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    flags = _cpu_flags()
    print(
        f"machine: {len(os.sched_getaffinity(0))} cores, {_cpu_name()},"
        f" {' '.join(flag for flag in _FLAGS if flag in flags) or 'no AVX2'}"
    )
    print(f"software: Python {platform.python_version()}, {', '.join(versions)}")
    print(f"GOMP_SPINCOUNT: {os.environ.get('GOMP_SPINCOUNT', 'not set')}")
    print(f"second core: {second_core():.2f} x the work of one core in two threads (idle: 2.0)")
    print("Others may share the machine: trust ratios within a table, not absolute figures.")


def second_core(*, rounds: int = 5) -> float:
    """Return how much more two threads do than one, in a loop that touches no memory."""
    with ThreadPoolExecutor(2) as pool:
        timings = interleave(
            {
                "one": lambda: _spin(_SPINS),
                "two": lambda: list(pool.map(_spin, (_SPINS, _SPINS))),
            },
            rounds=rounds,
        )
    return 2 * times_faster(timings["two"].wall, timings["one"].wall)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text under a title; the first column is aligned left, the others right."""
    widths = [max(len(row[place]) for row in (header, *rows)) for place in range(len(header))]
    print(f"\n{title}")
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())


@compiled
def _spin(count: int) -> Any:
    state = np.uint64(1)
    for number in range(count):
        state = state * np.uint64(6364136223846793005) + np.uint64(number)
    return state


def _cpu_name() -> str:
    return _cpu_line("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    return set(_cpu_line("flags").split())


def _cpu_line(key: str) -> str:
    place = Path("/proc/cpuinfo")
    lines = place.read_text().splitlines() if place.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
