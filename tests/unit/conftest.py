"""Tests that run themselves as several processes, as torchrun would start them."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

RunProcesses = Callable[[str, int], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def run_processes(tmp_path_factory: pytest.TempPathFactory) -> RunProcesses:
    """Run a script by `world` processes; return what each saved in the file it is given."""

    def run(script: str, world: int) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("processes")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
        root = str(Path(__file__).resolve().parents[2])
        running = []
        for rank in range(world):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": root}
            command = [sys.executable, "-W", "error", script, str(folder / f"{rank}.pt")]
            environment = os.environ | common | own
            running.append(
                subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            )
        try:
            errors = [process.communicate(timeout=120)[1] for process in running]
        finally:
            for process in running:
                process.kill()
        assert [process.returncode for process in running] == [0] * world, "\n".join(errors)
        return [torch.load(folder / f"{rank}.pt") for rank in range(world)]

    return run
