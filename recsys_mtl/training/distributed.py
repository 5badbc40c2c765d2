"""Training by several processes, each on its share of the rows: what they start with, and add up.

Processes are started by ``torchrun``, one per core or GPU. Weights beside the embedding tables are
kept alike in all of them: they begin as those of process 0, and every step sums the gradients. The
rows of the tables are dealt out (`recsys_mtl.network.Shard`). Functions that take `processes` are
collective: all processes call them, in the same order. None stands for one process alone.
"""

from __future__ import annotations

import atexit
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from torch import Tensor, nn
from torch import distributed as dist

from recsys_mtl.errors import SchemaError
from recsys_mtl.network import MultiTaskModel, Shard

Array = npt.NDArray[np.generic]
State = tuple[Mapping[str, Any], Mapping[str, Array]]

PATIENCE = timedelta(hours=6)
"""How long a process waits for the others, while one encodes or writes for them."""

_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


@dataclass(frozen=True)
class Processes:
    """The processes of a training run, seen from one of them.

    Parameters
    ----------
    rank, world
        Its number, and how many there are.
    local_rank
        Its number among those on the same machine.
    device
        Where it trains: with CUDA, the GPU of its local rank.
    """

    rank: int
    world: int
    local_rank: int
    device: torch.device

    @property
    def shard(self) -> Shard:
        """The rows of embedding tables that this process holds."""
        return Shard(self.rank, self.world)


def start_processes(device: torch.device | str) -> Processes | None:
    """Join the processes that torchrun started, or that torch's default group already has.

    A group that is made here ends with the program, or with `end_processes`.

    Parameters
    ----------
    device
        ``cpu`` (over gloo) or ``cuda`` (over NCCL).

    Returns
    -------
    processes
        None where this is the only process.
    """
    kind = torch.device(device).type
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
            return None
        dist.init_process_group(_BACKENDS[kind], timeout=PATIENCE)
        atexit.register(end_processes)
    if dist.get_world_size() == 1:
        return None
    local_rank = int(os.environ.get("LOCAL_RANK", dist.get_rank()))
    place = torch.device(kind)
    if kind == "cuda":
        place = torch.device(kind, local_rank)
        torch.cuda.set_device(place)
    return Processes(dist.get_rank(), dist.get_world_size(), local_rank, place)


def refuse_processes(what: str, device: torch.device) -> None:
    """Refuse what one process does alone.

    Raises
    ------
    SchemaError
        If there are several.
    """
    processes = start_processes(device)
    if processes is not None:
        raise SchemaError(
            f"{what} is for one process. Found {processes.world}: save the model, and call"
            " fit(warm_start=folder) in each."
        )


def end_processes() -> None:
    """Leave the group of processes, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def finish_processes() -> None:
    """Wait until the work of all processes is done, then leave their group; collective."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def check_alike(given: Mapping[str, Any], processes: Processes) -> None:
    """Refuse a run whose processes were not all given the same; collective.

    Parameters
    ----------
    given
        JSON values by name.
    processes
        Who takes part.

    Raises
    ------
    SchemaError
        In all processes, naming what differs.
    """
    unlike = []
    for name, value in given.items():
        number = zlib.crc32(json.dumps(value, sort_keys=True).encode())
        most = [processes.shard.most(n, processes.device) for n in (number, -number)]
        if most[0] != -most[1]:
            unlike.append(name)
    if unlike:
        raise SchemaError(
            f"All {processes.world} processes must be given the same {', '.join(unlike)}. Found others:"
            " let each run the same lines, whatever its rank."
        )


def share(num_rows: int, rank: int, world: int) -> tuple[int, int]:
    """Return the first row of a process and the one behind its last; shares differ by one at most."""
    return num_rows * rank // world, num_rows * (rank + 1) // world


def sum_(tensor: Tensor, processes: Processes | None) -> Tensor:
    """Sum a tensor over the processes, in place, and return it."""
    if processes is not None:
        dist.all_reduce(tensor)
    return tensor


def sum_gradients(parameters: Sequence[nn.Parameter], processes: Processes | None) -> None:
    """Sum the gradients over the processes, in one message; a parameter without one counts as zeros.

    Parameters
    ----------
    parameters
        The same ones, of one floating type, in every process. All then have a gradient.
    processes
        Who takes part.
    """
    if processes is None or not parameters:
        return
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    )
    dist.all_reduce(flat)
    parts = torch.split(flat, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)


@torch.no_grad()
def broadcast_(tensors: Iterable[Tensor], processes: Processes | None) -> None:
    """Give every process the values that process 0 has, such as the first weights; in place."""
    if processes is not None:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def broadcast_state(state: State | None, processes: Processes) -> State:
    """Give every process what process 0 has learned, such as an encoder's state.

    Parameters
    ----------
    state
        JSON values and named arrays of process 0; None on others.
    processes
        Who takes part.
    """
    if state is None:
        values: dict[str, Any] = json.loads(_broadcast_bytes(None, processes))
        return values, load_arrays(_broadcast_bytes(None, processes))
    _broadcast_bytes(json.dumps(state[0]).encode(), processes)
    arrays = {name: np.ascontiguousarray(array) for name, array in state[1].items()}
    _broadcast_bytes(save_arrays(arrays), processes)
    return state


def whole_state(model: MultiTaskModel) -> dict[str, Tensor] | None:
    """Return the state of a model with all rows of its tables, on the CPU of process 0.

    Others get None. An unsharded model of the same settings can load it.
    """
    tables = model.embeddings.gather("features.embeddings.")
    if tables is None:
        return None
    own = {name: value for name, value in model.state_dict().items() if name not in tables}
    return {name: value.cpu() for name, value in own.items()} | tables


def whole_rows(tensors: Mapping[str, Tensor], model: MultiTaskModel) -> dict[str, Tensor] | None:
    """Return what a run keeps for a later one, with the rows of all processes, in process 0.

    Others get None.

    Parameters
    ----------
    tensors
        Of the CPU, by name: ``table.<number>.<name>`` and ``known.<number>`` have a row for each row of a
        table that this process holds, all else is the same in all processes.
    model
        The tables.
    """
    whole, tables = dict(tensors), model.embeddings.each()
    for name, own in tensors.items():
        kind, _, rest = name.partition(".")
        if kind in {"table", "known"}:
            table = tables[int(rest.partition(".")[0])]
            sent = own.to(torch.uint8) if own.dtype == torch.bool else own  # gloo has no bool
            found = table.shard.gather(sent, table.all_rows, device=table.weight_RD.device)
            if found is not None:
                whole[name] = found.to(own.dtype)
    return None if model.embeddings.shard.rank else whole


def _broadcast_bytes(content: bytes | None, processes: Processes) -> bytes:
    """Give every process the bytes of process 0, which alone has any."""
    size = torch.tensor(0 if content is None else len(content), device=processes.device)
    dist.broadcast(size, src=0)
    sent = torch.empty(int(size), dtype=torch.uint8)
    if content is not None:
        sent.numpy()[:] = np.frombuffer(content, dtype=np.uint8)
    sent = sent.to(processes.device)
    dist.broadcast(sent, src=0)
    return sent.cpu().numpy().tobytes()
