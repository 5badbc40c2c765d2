import pytest
import torch

from recsys_mtl.training.balancing.quadratic import dual_cone_weights, min_norm_weights


def _gramian(num_tasks, width, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_tasks, width, generator=generator, dtype=torch.float64)
    gramian = rows @ rows.T
    return gramian / gramian.diagonal().mean()


@pytest.mark.parametrize("width", [1, 3, 30])
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8])
def test_the_shortest_vector_meets_the_conditions_of_optimality(num_tasks, width):
    """On the simplex, no vertex has a smaller inner product with it than itself."""
    for seed in range(20):
        gramian = _gramian(num_tasks, width, seed)
        weights_T = min_norm_weights(gramian)
        assert (weights_T >= 0).all()
        assert float(weights_T.sum()) == pytest.approx(1, abs=1e-12)
        norm = weights_T @ gramian @ weights_T
        assert ((gramian @ weights_T) >= norm - 1e-9).all()


def test_the_shortest_of_two_is_the_closed_form():
    for seed in range(20):
        gramian = _gramian(2, 3, seed)
        (aa, ab), (_, bb) = gramian.tolist()
        share = min(max((bb - ab) / (aa + bb - 2 * ab), 0), 1)
        assert min_norm_weights(gramian).tolist() == pytest.approx([share, 1 - share], abs=1e-9)


@pytest.mark.parametrize("width", [1, 3, 30])
@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8])
def test_a_projection_on_the_dual_cone_meets_the_conditions_of_optimality(num_tasks, width):
    """The direction harms none, only adds gradients, and adds none that gains from it."""
    for seed in range(20):
        gramian = _gramian(num_tasks, width, seed)
        start_T = torch.rand(num_tasks, dtype=torch.float64)
        found_T = dual_cone_weights(start_T, gramian)
        gains_T, added_T = gramian @ found_T, found_T - start_T
        assert (gains_T >= -1e-6).all()
        assert (added_T >= 0).all()
        assert ((added_T * gains_T).abs() < 1e-6).all()


@pytest.mark.parametrize("kind", ["UPGradWeighting", "DualProjWeighting"])
def test_projections_are_those_of_torchjd_with_little_regularisation(kind):
    pytest.importorskip("quadprog", reason="needs torchjd's quadprog_projector")
    pytest.importorskip("qpsolvers", reason="needs torchjd's quadprog_projector")
    aggregation = pytest.importorskip("torchjd.aggregation", reason="needs torchjd")
    linalg = pytest.importorskip("torchjd.linalg", reason="needs torchjd")
    projector = linalg.QuadprogProjector(norm_eps=1e-12, reg_eps=1e-10)
    theirs = getattr(aggregation, kind)(projector=projector)
    for seed in range(20):
        gramian = _gramian(3, 5, seed)
        means_TT = torch.eye(3, dtype=torch.float64) / 3
        if kind == "DualProjWeighting":
            ours = dual_cone_weights(means_TT.sum(dim=0), gramian)
        else:
            ours = sum(dual_cone_weights(one, gramian) for one in means_TT)
        torch.testing.assert_close(ours, theirs(gramian), rtol=0, atol=1e-6)
