"""Importing the package is cheap, silent and changes nothing."""

import json
import pkgutil
import subprocess
import sys

import pytest

import recsys_mtl

MODULES = sorted(
    found.name for found in pkgutil.walk_packages(recsys_mtl.__path__, prefix="recsys_mtl.")
)


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )


def test_importing_the_package_loads_no_heavy_library():
    heavy = ["torch", "pandas", "sklearn", "numba", "polars", "pyarrow", "pydantic"]
    code = f"import sys, recsys_mtl; print([n for n in {heavy} if n in sys.modules])"
    assert run(code).stdout.strip() == "[]"


def test_importing_the_command_line_loads_no_heavy_library():
    heavy = ["torch", "pandas", "sklearn", "numba", "polars"]
    code = f"import sys, recsys_mtl.cli; print([n for n in {heavy} if n in sys.modules])"
    assert run(code).stdout.strip() == "[]"


@pytest.mark.parametrize("name", recsys_mtl.__all__)
def test_every_public_name_is_there_and_listed(name):
    assert getattr(recsys_mtl, name).__name__ == name
    assert name in dir(recsys_mtl)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Rankers'"):
        _ = recsys_mtl.Rankers


def test_importing_every_module_changes_no_setting_and_prints_nothing():
    # the libraries come first: what they do on import is theirs
    code = f"""
import importlib, json, logging, os, random, signal, sys, warnings
import numba, numpy, pandas, polars, pyarrow.parquet, pydantic, safetensors.torch, sklearn.base
import torch, tqdm, typer

def state():
    return [
        dict(os.environ), os.getcwd(), torch.get_num_threads(), str(torch.get_default_dtype()),
        torch.initial_seed(), numba.get_num_threads(), logging.getLogger().level,
        len(logging.getLogger().handlers), len(warnings.filters), hash(random.getstate()),
        numpy.random.get_state()[1].tolist(), str(signal.getsignal(signal.SIGINT)),
        str(polars.Config.state()), pandas.get_option("display.max_rows"),
    ]

state()  # numba, asked for its threads, starts them and sets OpenMP's
before = state()
for name in {MODULES}:
    importlib.import_module(name)
print(json.dumps([a == b for a, b in zip(before, state())]))
"""
    done = run(code)
    assert all(json.loads(done.stdout))
    assert done.stderr == ""
