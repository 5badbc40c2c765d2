"""FM against the sum over pairs."""

from itertools import combinations

import torch
from torch import Tensor

from recsys_mtl.network.interaction import FM

VECTOR_DIMS = ((4, 3), (2, 5), (1, 2), (0, 7))


def _vectors(num_rows: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(num_rows, count, dim).double() for count, dim in VECTOR_DIMS)


def test_it_adds_the_sum_over_pairs_of_every_width_that_has_two() -> None:
    module, x_BI, vectors = FM().build(6, VECTOR_DIMS), torch.randn(7, 6).double(), _vectors(7)
    expected = [x_BI]
    for vectors_BCD in vectors[:2]:
        pairs = combinations(vectors_BCD.unbind(1), 2)
        expected.append(torch.stack([left_BD * right_BD for left_BD, right_BD in pairs]).sum(dim=0))
    found_BI = module(x_BI, vectors)
    torch.testing.assert_close(found_BI, torch.cat(expected, dim=1), rtol=0, atol=1e-12)
    assert module.output_dim == found_BI.shape[1] == 6 + 3 + 5


def test_features_stand_in_front_bit_for_bit() -> None:
    x_BI = torch.randn(7, 6).double()
    assert torch.equal(FM().build(6, VECTOR_DIMS)(x_BI, _vectors(7))[:, :6], x_BI)


def test_the_order_of_features_does_not_matter() -> None:
    module, x_BI, vectors = FM().build(6, VECTOR_DIMS), torch.randn(7, 6).double(), _vectors(7)
    turned = module(x_BI, tuple(vectors_BCD.flip(1) for vectors_BCD in vectors))
    torch.testing.assert_close(module(x_BI, vectors), turned, rtol=0, atol=1e-12)


def test_it_has_nothing_to_learn() -> None:
    assert not list(FM().build(6, VECTOR_DIMS).parameters())
