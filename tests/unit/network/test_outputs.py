import numpy as np
import polars as pl
import pytest
import torch

from recsys_mtl.encoding import MISSING, OBSERVED, OUT_OF_SPACE, Batch
from recsys_mtl.network import Outputs
from recsys_mtl.schema import Binary, Multiclass, Regression

CTR = Binary("ctr", label="click")
RATING = Regression("rating", label="rating", bounds=(1, 5))
GENRE = Multiclass("genre", label="genre", num_classes=3)
BINNED = Regression("rating", label="rating", loss="bins", num_bins=3, bounds=(1, 5))


def _batch(labels: list[list[float]], states: object = None, weights: object = None) -> Batch:
    values = np.array(labels, dtype=np.float32)
    return Batch(
        len(values),
        (),
        pl.DataFrame(),
        labels=values,
        states=np.full(values.shape, OBSERVED, np.uint8) if states is None else np.uint8(states),
        weights=np.ones_like(values) if weights is None else np.float32(weights),
    )


def test_base_rates_are_those_of_observed_rows_by_weight() -> None:
    outputs = Outputs([CTR, GENRE])
    batch = _batch(
        [[1, 0], [0, 1], [0, 1], [0, 0]],
        states=[[OBSERVED] * 2, [OBSERVED] * 2, [OBSERVED, MISSING], [OUT_OF_SPACE, OBSERVED]],
        weights=[[3, 2], [2, 1], [1, 9], [50, 1]],
    )
    bias_Z = outputs.learn(batch)
    ctr, genre = outputs(bias_Z[None].double())
    assert ctr.item() == pytest.approx(3 / 6, abs=1e-6)
    assert genre[0].tolist() == pytest.approx([3 / 4, 1 / 4, 1e-6], abs=1e-6)


def test_a_rate_of_0_or_1_starts_at_a_finite_logit() -> None:
    for label in (0, 1):
        bias_Z = Outputs([CTR]).learn(_batch([[label]] * 3))
        assert bias_Z.isfinite().all()
        assert torch.sigmoid(bias_Z).item() == pytest.approx(label, abs=2e-6)


def test_a_regression_logit_is_the_standardised_label() -> None:
    outputs = Outputs([RATING])
    labels, weights = np.array([1, 2, 4, 5.0]), np.array([1, 1, 1, 3.0])
    bias_Z = outputs.learn(_batch(labels[:, None].tolist(), weights=weights[:, None]))
    mean = np.average(labels, weights=weights)
    std = np.sqrt(np.average((labels - mean) ** 2, weights=weights))
    assert bias_Z.tolist() == [0]
    assert outputs.mean_T.item() == pytest.approx(mean, rel=1e-6)
    assert outputs.std_T.item() == pytest.approx(std, rel=1e-6)
    (score,) = outputs(torch.tensor([[0.5]]))
    assert score.item() == pytest.approx(mean + std / 2, rel=1e-6)


def test_equal_labels_have_deviation_one_however_they_are_weighed() -> None:
    """Their weighted mean may be off by rounding, and then their deviation is 1e-16, not 0."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        outputs = Outputs([RATING])
        outputs.learn(_batch([[3.3]] * 50, weights=rng.uniform(0, 2, (50, 1))))
        assert outputs.std_T.item() == 1
        assert outputs.mean_T.item() == pytest.approx(3.3)


def test_rows_of_weight_zero_do_not_set_the_scale() -> None:
    outputs = Outputs([RATING])
    outputs.learn(_batch([[2], [2], [5]], weights=[[1], [1], [0]]))
    assert (outputs.mean_T.item(), outputs.std_T.item()) == (2, 1)


def test_bins_start_at_the_labels_histogram_and_score_their_mean() -> None:
    outputs = Outputs([CTR, BINNED])
    labels, weights = np.array([1, 1, 2, 3.5, 5.0]), np.array([1, 2, 1, 2, 4.0])
    found = np.stack([np.ones(5), labels], axis=1)
    bias_Z = outputs.learn(_batch(found.tolist(), weights=np.stack([weights] * 2, axis=1)))
    # 2 lies half way between bins 1 and 3, 3.5 a quarter of the way from 3 to 5
    histogram = np.array([3 + 0.5, 0.5 + 1.5, 0.5 + 4]) / 10
    assert bias_Z[1:].softmax(0).tolist() == pytest.approx(histogram.tolist(), abs=1e-6)
    _, score = outputs(bias_Z[None])
    assert score.item() == pytest.approx(np.average(labels, weights=weights), abs=1e-5)
    assert (outputs.mean_T[1].item(), outputs.std_T[1].item()) == (0, 1)


def test_scores_of_bins_stay_within_bounds_whatever_the_logits() -> None:
    logits = torch.tensor([[90.0, -90, -90], [-90, -90, 90], [0, 0, 0], [1e30, 1e30, 0]])
    (scores,) = Outputs([BINNED])(logits)
    assert scores.tolist() == pytest.approx([1, 5, 3, 2])
    many = Regression("r", label="r", loss="bins", num_bins=777, bounds=(-0.1, 0.3))
    (scores,) = Outputs([many])(torch.randn(200, 777) * 100)
    assert scores.min() >= np.float32(-0.1)
    assert scores.max() <= np.float32(0.3)


@pytest.mark.parametrize("task", [CTR, RATING, GENRE, BINNED])
def test_a_task_without_observed_rows_starts_at_zero(
    task: Binary | Regression | Multiclass,
) -> None:
    outputs = Outputs([task])
    bias_Z = outputs.learn(_batch([[0], [0]], states=[[MISSING], [OUT_OF_SPACE]]))
    assert not bias_Z.any()
    assert (outputs.mean_T.item(), outputs.std_T.item()) == (0, 1)


def test_scores_are_clipped_to_the_bounds_and_free_without() -> None:
    free = Regression("time", label="time")
    outputs = Outputs([RATING, free])
    bounded, unbounded = outputs(torch.tensor([[-9.0, -9.0], [2.5, 2.5], [9.0, 9.0]]))
    assert bounded.tolist() == [1, 2.5, 5]
    assert unbounded.tolist() == [-9, 2.5, 9]


def test_multiclass_scores_are_a_softmax_over_its_own_logits() -> None:
    outputs = Outputs([CTR, GENRE])
    logits_BZ = torch.tensor([[0.3, 1.0, 2.0, 4.0], [-0.3, 0.0, 0.0, 0.0]], dtype=torch.float64)
    ctr, genre = outputs(logits_BZ)
    powers = np.exp(logits_BZ[:, 1:].numpy())
    np.testing.assert_allclose(genre, powers / powers.sum(axis=1, keepdims=True), atol=1e-12)
    np.testing.assert_allclose(ctr, 1 / (1 + np.exp([-0.3, 0.3])), atol=1e-12)


def test_half_precision_logits_give_float32_scores() -> None:
    scores = Outputs([CTR, GENRE])(torch.randn(3, 4).bfloat16())
    assert [found.dtype for found in scores] == [torch.float32, torch.float32]


def test_label_scales_are_saved_with_the_weights() -> None:
    outputs, other = Outputs([RATING]), Outputs([RATING])
    outputs.learn(_batch([[1], [2], [5]]))
    other.load_state_dict(outputs.state_dict())
    assert torch.equal(other.mean_T, outputs.mean_T)
    assert torch.equal(other.std_T, outputs.std_T)


def test_label_scales_need_labels() -> None:
    with pytest.raises(ValueError, match="labels"):
        Outputs([CTR]).learn(Batch(1, (), pl.DataFrame()))
