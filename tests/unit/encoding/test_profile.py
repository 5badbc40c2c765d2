"""A profile counts numbers by their edges as numpy does in double precision."""

import numpy as np
import polars as pl
import pytest

from recsys_mtl import Binary, Numeric, Schema
from recsys_mtl.encoding import Encoder
from recsys_mtl.encoding.profile import Profile


@pytest.mark.parametrize("moved", [0.0, 1e-12, -1e-12, 0.01])
def test_numbers_at_and_beside_an_edge_are_in_the_right_bucket(moved):
    rng = np.random.default_rng(0)
    values = [None if rng.random() < 0.1 else float(one) for one in rng.normal(size=500)]
    table = pl.DataFrame({"size": values, "click": rng.integers(2, size=500)})
    schema = Schema(
        context=[Numeric("size", scaling="standard")], tasks=[Binary("ctr", label="click")]
    )
    encoder = Encoder(schema)
    batch = encoder.fit_encode(table)
    dense = batch.parts[0].block.dense
    known = dense[dense[:, 1] == 0, 0].astype(np.float64)
    edges = np.unique(known[:9] + moved)  # not numbers in single precision, if moved
    found = Profile({}, {"size": tuple(edges)}).count(schema, encoder.layout, batch)["size"]
    expected = np.bincount(np.searchsorted(edges, known, side="right"), minlength=edges.size + 1)
    assert found.buckets == tuple(expected)
    assert (found.rows, found.null) == (500, values.count(None))
