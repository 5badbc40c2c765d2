"""The same seed gives the same bits, and nobody else's random numbers change."""

import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch

from recsys_mtl import MMoE


@pytest.fixture(scope="module")
def fitted(make, log):
    """Fit on a small part of the log; return the scores of the test rows."""
    train, valid = log.rows(log.part("train").head(2000)), log.rows(log.part("valid").head(300))

    def scores(random_state):
        sharing = MMoE(num_experts=2, expert_dims=(16,), dropout=0.2)
        made = make(max_epochs=2, sharing=sharing, random_state=random_state)
        return made.fit(train, valid=valid).predict(log.rows(log.part("test")))

    return scores


def test_the_same_seed_gives_the_same_bits(fitted):
    assert fitted(3).equals(fitted(3))


def test_another_seed_gives_another_model(fitted):
    assert not fitted(3).equals(fitted(4))


def test_a_random_state_of_the_same_seed_gives_the_model_of_that_seed(fitted):
    assert fitted(np.random.RandomState(3)).equals(fitted(3))
    assert fitted(np.int64(3)).equals(fitted(3))


def test_a_random_state_is_drawn_from_at_every_fit(fitted):
    state = np.random.RandomState(3)
    assert not fitted(state).equals(fitted(state))


def test_without_a_seed_numpys_global_seed_counts(fitted):
    np.random.seed(3)  # noqa: NPY002 # what scikit-learn's users do
    first = fitted(None)
    np.random.seed(3)  # noqa: NPY002 # what scikit-learn's users do
    assert fitted(None).equals(first)


def test_fit_predict_and_evaluate_leave_the_callers_random_states_alone(fitted, ranker, log):
    import random

    legacy = np.random.get_state
    before = random.getstate(), legacy()[1].copy(), torch.get_rng_state()
    fitted(3)
    ranker.predict(log.rows(log.part("test")))
    ranker.evaluate(log.rows(log.part("test")))
    assert random.getstate() == before[0]
    assert (legacy()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])


def test_the_callers_random_states_do_not_change_the_model(fitted):
    first = fitted(3)
    np.random.rand(10)  # noqa: NPY002 # the legacy state is what is meant
    torch.rand(10)
    assert fitted(3).equals(first)


def test_another_process_gives_the_same_scores(model, ranker, log, folder, tmp_path):
    code = (
        "import sys; from recsys_mtl import load, scan\n"
        "model, folder, out = sys.argv[1:]\n"
        "rows = scan(folder + '/interactions.parquet', users=folder + '/users.parquet',"
        " items=folder + '/items.parquet')\n"
        "load(model, device='cpu').predict(rows).write_parquet(out)"
    )
    out = tmp_path / "scores.parquet"
    subprocess.run([sys.executable, "-W", "error", "-c", code, model, folder, out], check=True)
    rows = log.rows(folder / "interactions.parquet")
    assert pl.read_parquet(out).equals(ranker.predict(rows))
