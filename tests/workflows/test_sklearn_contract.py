"""MultiTaskRanker is a scikit-learn estimator."""

import io

import joblib
import numpy as np
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError as SklearnNotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.utils.validation import check_is_fitted

from recsys_mtl import (
    PLE,
    Binary,
    Categorical,
    MMoE,
    MultiTaskRanker,
    Numeric,
    Regression,
    Schema,
    SharedBottom,
    Side,
    load,
)
from recsys_mtl.describe import describe_model
from recsys_mtl.errors import EncodingError, NotFittedError, SchemaError
from recsys_mtl.fitting import Fit


@pytest.fixture(scope="module")
def flat(log):
    """One small pandas table with a plain schema's columns."""
    return log.flat(log.interactions.head(1200)).to_pandas()


@pytest.fixture(scope="module")
def plain():
    return Schema(
        user=Side("user_id", features=[Categorical("user_id")]),
        item=Side("item_id", features=[Categorical("item_id")]),
        context=[Numeric("duration_ms")],
        tasks=[Binary("ctr", label="label_ctr"), Regression("rating", label="label_rating")],
    )


@pytest.fixture
def small(plain):
    return MultiTaskRanker(
        plain,
        sharing=SharedBottom(dims=(8,)),
        embedding_dim=4,
        batch_size=256,
        max_epochs=1,
        device="cpu",
        random_state=0,
    )


def test_get_params_gives_what_the_constructor_took(plain):
    given = {
        "schema": plain,
        "sharing": PLE(),
        "embedding_dim": 3,
        "monitor": "ctr.auc",
        "random_state": 7,
    }
    found = MultiTaskRanker(**given).get_params()
    assert {name: found[name] for name in given} == given


def test_a_clone_has_equal_parameters_and_is_not_fitted(small, flat):
    copy = clone(small.fit(flat))
    assert copy.get_params() == small.get_params()
    assert copy is not small
    with pytest.raises(NotFittedError):
        copy.predict(flat)


def test_set_params_changes_the_next_fit(small, flat):
    assert small.set_params(max_epochs=2, sharing=MMoE(num_experts=2, expert_dims=(8,))) is small
    assert small.fit(flat).history_.height == 2
    assert any("experts" in name for name, _ in small.scorer.model.named_parameters())


def test_set_params_refuses_an_unknown_name(small):
    with pytest.raises(ValueError, match="num_epochs"):
        small.set_params(num_epochs=2)


def test_fit_returns_the_ranker_itself(small, flat):
    assert small.fit(flat) is small
    check_is_fitted(small)


@pytest.mark.parametrize("use", ["predict", "evaluate", "score", "save"])
def test_an_unfitted_ranker_says_so(small, flat, tmp_path, use):
    argument = tmp_path / "model" if use == "save" else flat
    with pytest.raises(NotFittedError, match="fit or load") as caught:
        getattr(small, use)(argument)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, AttributeError)
    assert not (tmp_path / "model").exists()


def test_scikit_learn_sees_that_a_ranker_is_not_fitted(small):
    with pytest.raises(SklearnNotFittedError):
        check_is_fitted(small)


def test_repr_names_the_class_and_its_settings(small):
    text = repr(small)
    assert text.startswith("MultiTaskRanker(")
    assert "max_epochs=1" in text
    assert "SharedBottom(dims=(8,)" in text


def test_score_is_one_number_the_mean_of_auc_and_r_squared(small, flat):
    from sklearn.metrics import r2_score, roc_auc_score

    small.fit(flat)
    scores = small.predict(flat)
    rated = flat["label_rating"].notna()
    auc = roc_auc_score(flat["label_ctr"], scores["ctr"])
    fit = r2_score(flat["label_rating"][rated], scores["rating"][rated])
    found = small.score(flat)
    assert isinstance(found, float)
    assert found == pytest.approx((auc + fit) / 2, abs=1e-6)


def test_score_and_evaluate_refuse_an_empty_table(small, flat):
    small.fit(flat)
    for measure in (small.score, small.evaluate):
        with pytest.raises(EncodingError, match="empty table"):
            measure(flat.iloc[:0])


def test_grid_search_over_sharing_structures_works_on_a_pandas_frame(small, flat):
    choices = [MMoE(num_experts=2, expert_dims=(8,)), SharedBottom(dims=(8,))]
    search = GridSearchCV(small, {"sharing": choices}, cv=2, n_jobs=1, error_score="raise")
    search.fit(flat)
    assert search.best_params_["sharing"] in choices
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.predict(flat).index.equals(flat.index)


def test_grid_search_over_numpy_integers_works(small, flat):
    grid = {"embedding_dim": np.array([2, 4]), "max_epochs": np.arange(1, 2)}
    search = GridSearchCV(small, grid, cv=2, n_jobs=1, error_score="raise").fit(flat)
    assert int(search.best_params_["embedding_dim"]) in {2, 4}


def test_a_pickled_ranker_predicts_the_same_bits(small, flat):
    small.fit(flat)
    stream = io.BytesIO()
    joblib.dump(small, stream)
    stream.seek(0)
    restored = joblib.load(stream)
    assert restored.predict(flat).equals(small.predict(flat))
    assert restored.get_params() == small.get_params()


def test_refit_needs_valid_rows(small, flat):
    with pytest.raises(ValueError, match="refit=True needs valid"):
        small.fit(flat, refit=True)


def test_refit_trains_as_long_as_valid_has_chosen_on_both_tables(small, log):
    train, valid = (log.flat(log.part(name).head(1000)) for name in ("train", "valid"))
    chosen = clone(small).set_params(max_epochs=3).fit(train, valid=valid, refit=True)
    both = clone(small).set_params(max_epochs=chosen.best_epoch_).fit(pl.concat([train, valid]))
    assert chosen.predict(valid).equals(both.predict(valid))
    assert chosen.history_.height >= chosen.best_epoch_
    assert chosen.valid_report_ is not None


def test_refit_refuses_rows_with_other_side_tables_before_training(make, log, monkeypatch):
    unfitted = make()
    monkeypatch.setattr(Fit, "run", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(ValueError, match="share their users and items"):
        unfitted.fit(log.rows(log.part("train")), valid=log.flat(log.part("valid")), refit=True)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"schema": "user_id"}, "schema must be a Schema"),
        ({"sharing": "mmoe"}, "sharing"),
        ({"heads": SharedBottom()}, "heads"),
        ({"embedding_dim": 0}, "embedding_dim"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_epochs": 1.5}, "max_epochs"),
        ({"monitor": "clicks.auc"}, "monitor must be"),
        ({"device": "abacus"}, "device must be"),
    ],
)
def test_a_wrong_setting_fails_at_fit_and_names_itself(small, flat, settings, text):
    with pytest.raises(SchemaError, match=text):
        small.set_params(**settings).fit(flat)


def test_a_failed_fit_leaves_the_fitted_ranker_as_it_was(small, flat):
    before = small.fit(flat).predict(flat)
    history, settings = small.history_, small.settings_
    broken = flat.assign(label_ctr=2)
    for wrong in (broken, flat.drop(columns="duration_ms"), flat.iloc[:0]):
        with pytest.raises(EncodingError):
            small.fit(wrong)
    with pytest.raises(EncodingError):
        small.fit(flat, valid=broken)
    assert small.predict(flat).equals(before)
    assert small.history_ is history
    assert small.settings_ is settings


def test_an_interrupted_fit_leaves_the_fitted_ranker_as_it_was(small, flat, monkeypatch):
    from recsys_mtl.training import Trainer

    before = small.fit(flat).predict(flat)

    def interrupted(*arguments: object, **named: object):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small.fit(flat.head(500))
    assert small.predict(flat).equals(before)


def test_new_parameters_do_not_touch_the_fitted_model_until_the_next_fit(small, flat, tmp_path):
    from recsys_mtl import load
    from recsys_mtl.describe import describe_model

    small.fit(flat)
    scores, report, words = small.predict(flat), small.evaluate(flat), describe_model(small)
    other = Schema(context=[Categorical("hour")], tasks=[Binary("other", label="label_interest")])
    small.set_params(schema=other, sharing=PLE(), embedding_dim=99, monitor="other.auc")
    assert small.predict(flat).equals(scores)
    assert small.evaluate(flat) == report
    assert describe_model(small) == words
    small.save(tmp_path / "model")
    assert load(tmp_path / "model").predict(flat).equals(scores)


def test_fit_predict_and_evaluate_leave_the_table_as_it_was(small, flat):
    before = flat.copy(deep=True)
    small.fit(flat, valid=flat.head(300)).predict(flat)
    small.evaluate(flat)
    assert flat.equals(before)
    assert (flat.dtypes == before.dtypes).all()


def test_batch_sizes_of_epochs_are_a_parameter_like_others(make, log, tmp_path):
    table = log.flat(log.part("train"))
    ranker = make(batch_size=(128, 512), max_epochs=3)
    twin = clone(ranker)
    assert twin.get_params()["batch_size"] == (128, 512)
    predicted = ranker.fit(table).predict(table)
    assert twin.fit(table).predict(table).equals(predicted)
    ranker.save(tmp_path / "model")
    loaded = load(tmp_path / "model", device="cpu")
    assert loaded.settings_.batch_size == loaded.batch_size == (128, 512)
    assert "batches of 128, 512, random state" in describe_model(loaded)
