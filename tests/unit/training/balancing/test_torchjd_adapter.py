import sys

import pytest
import torch

from recsys_mtl.training.balancing import MGDA, CAGrad, DualProj, PCGrad, UPGrad
from recsys_mtl.training.balancing.torchjd_adapter import torchjd_weighting


@pytest.mark.parametrize(("balance", "extra"), [(PCGrad(), "balancing"), (CAGrad(), "cagrad")])
def test_without_torchjd_the_error_names_the_extra(monkeypatch, build, balance, extra):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(ImportError, match=rf"pip install 'recsys_mtl\[{extra}\]'"):
        build(balance, 2)


def test_a_solver_that_is_missing_is_named_with_the_extra():
    pytest.importorskip("torchjd", reason="needs the extra `balancing`")

    def make(torchjd):
        raise ImportError("requires ['clarabel']")

    with pytest.raises(ImportError, match=r"recsys_mtl\[cagrad\].*clarabel"):
        torchjd_weighting(make, extra="cagrad")


@pytest.mark.parametrize("balance", [MGDA(), UPGrad(), DualProj()])
def test_exact_programs_need_no_torchjd(monkeypatch, combine, balance):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    jacobian = torch.eye(2, dtype=torch.float64)
    assert combine(balance, jacobian).tolist() == pytest.approx([0.5, 0.5])
