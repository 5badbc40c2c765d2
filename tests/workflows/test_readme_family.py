"""The README's section on the whole family, word for word."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys_mtl import Binary, MultiTaskRanker, Schema
from recsys_mtl.network import Extractor, Heads, Interaction, SequenceEncoder, Sharing
from recsys_mtl.spec import Spec
from recsys_mtl.training import Balance

README = Path(__file__).parents[2] / "README.md"
SECTION = README.read_text().split("## The whole family")[1].split("\n## ")[0]
FAMILIES = {
    "sharing": Sharing,
    "heads": Heads,
    "sequences": SequenceEncoder,
    "interaction": Interaction,
    "extractors": Extractor,
    "balance": Balance,
}
BLOCKS = re.findall(r"```python\n(.*?)```", SECTION, flags=re.DOTALL)


def test_a_network_of_ones_own_is_made_as_the_readme_says() -> None:
    names: dict[str, Any] = {
        "Binary": Binary,
        "MultiTaskRanker": MultiTaskRanker,
        "Schema": Schema,
        "__name__": __name__,
    }
    (block,) = [code for code in BLOCKS if "class Tiny" in code]
    exec(compile(block, "tiny", "exec", dont_inherit=True), names)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(64, 512)).astype(np.float32)
    table = pl.DataFrame(
        {"image": pl.Series(image, dtype=pl.Array(pl.Float32, 512)), "click": [0, 1] * 32}
    )
    ranker = names["seeing"].set_params(max_epochs=1, device="cpu").fit(table)
    extractors = ranker.scorer.model.features.extractors
    assert [tuple(layer.weight.shape) for layer in [extractors[0][0]]] == [(64, 512)]
    assert ranker.predict(table).columns == ["ctr"]


@pytest.mark.parametrize("choice", FAMILIES)
def test_the_table_of_kinds_names_all_that_the_package_has(choice: str) -> None:
    rows = [
        line.split("|")[2:4] for line in SECTION.splitlines() if line.startswith(f"| `{choice}`")
    ]
    known = {
        kind: cls.__name__
        for kind, cls in Spec._kinds.items()
        if issubclass(cls, FAMILIES[choice]) and cls.__module__.startswith("recsys_mtl.")
    }
    names = set(known.values())
    found: dict[str, str] = {}
    for classes, kinds in rows:
        listed = [name for name in re.findall(r"`(\w+)`", classes) if name in names]
        found |= dict(zip(re.findall(r"`(\w+)`", kinds), listed, strict=True))
    assert found == known


def test_the_balances_that_need_an_extra_are_those_that_ask_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchjd", None)  # as if it were not installed
    (row,) = [line for line in SECTION.splitlines() if line.startswith("| `balance` of gradients")]
    plain, balancing, cagrad = re.split(r"; with `[^`]*`: ", row.split("|")[2])
    named = {extra: set(re.findall(r"`(\w+)`", text)) for extra, text in (
        ("balancing", balancing), ("cagrad", cagrad),
    )}  # fmt: skip
    asked: dict[str, set[str]] = {"balancing": set(), "cagrad": set()}
    tasks = [Binary("a", label="a"), Binary("b", label="b")]
    for cls in [found for found in Spec._kinds.values() if issubclass(found, Balance)]:
        try:
            cls().build(tasks, seed=0, device="cpu")
        except ImportError as error:
            (extra,) = re.findall(r"needs the extra '(\w+)'", str(error))
            asked[extra].add(cls.__name__)
    assert named == asked
    assert set(re.findall(r"`(\w+)`", plain)) == {"MGDA", "UPGrad", "DualProj"}
