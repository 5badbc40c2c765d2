import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys_mtl.encoding import MISSING, NUM_RESERVED, Batch
from recsys_mtl.network import Embedded, MultiTaskModel, RowTensors
from recsys_mtl.schema import Schema
from recsys_mtl.training import (
    SGD,
    Adam,
    RowWiseAdagrad,
    TrainConfig,
    Trainer,
    evaluate_rows,
    seeded,
    task_losses,
)
from recsys_mtl.training.losses import TaskLosses

CPU = torch.device("cpu")
MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., MultiTaskModel]
Weights = dict[str, Tensor]


def _trainer(
    model: MultiTaskModel, schema: Schema, *, seed: int = 0, progress: bool = False, **settings: Any
) -> Trainer:
    config = TrainConfig(**({"batch_size": 64, "max_epochs": 3} | settings))
    return Trainer(model, schema, config, seed=seed, progress=progress)


def _weights(model: MultiTaskModel) -> Weights:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def _twin_tables(model: MultiTaskModel) -> list[Tensor]:
    """Dense copies of the tables that autograd differentiates: tags (width 2), then items."""
    return [table.weight_RD.detach().clone().requires_grad_() for table in model.embeddings.each()]


def _twin_loss(model: MultiTaskModel, schema: Schema, batch: Batch, tables: list[Tensor]) -> Tensor:
    """Pool by plain indexing, so that autograd gives the tables their dense gradient."""
    tags, items = tables
    block = batch.parts[0].block
    ragged = block.lists[0]
    pooled = []
    for row in range(batch.num_rows):
        own = slice(ragged.offsets[row], ragged.offsets[row + 1])
        factors = torch.from_numpy(ragged.weights[own]).to(tags.dtype)
        pooled.append((tags[ragged.values[own]] * factors[:, None]).sum(dim=0))
    vectors = torch.stack(pooled), items[torch.from_numpy(block.ids)].flatten(0, 1)
    rows = RowTensors(batch, CPU)
    everything = torch.arange(batch.num_rows)
    predicted = model.from_embedded(Embedded(vectors, ()), rows.take(everything))
    outputs = model.outputs
    losses_T = task_losses(
        predicted.headed,
        rows.targets(everything),
        schema.tasks,
        outputs.mean_T,
        outputs.std_T,
        model.heads,
    ).means_T
    return sum(task.weight * losses_T[k] for k, task in enumerate(schema.tasks))


def test_one_step_is_that_of_a_dense_twin(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    """With eps = 1 the first step is nearly ``lr * gradient``: its size is seen, not its sign only."""
    batch, model = make_batch(40), make_model().double()
    model.learn_outputs(batch)
    twin = copy.deepcopy(model)
    tables = _twin_tables(twin)
    _twin_loss(twin, schema, batch, tables).backward()
    _trainer(
        model,
        schema,
        max_epochs=1,
        optimizer=SGD(0.1),
        table_optimizer=RowWiseAdagrad(0.5, eps=1.0),
        average=None,
    ).fit(batch)
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        if one.requires_grad:
            assert other.grad is not None
            torch.testing.assert_close(
                one, other - 0.1 * other.grad, rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
            )
    for table, dense in zip(model.embeddings.each(), tables, strict=True):
        assert dense.grad is not None
        root_R = dense.grad.square().mean(dim=1, keepdim=True).sqrt()
        expected = dense - 0.5 * dense.grad / (root_R + 1.0)
        assert dense.grad[NUM_RESERVED:].any(dim=1).sum() >= 5
        torch.testing.assert_close(
            table.weight_RD[NUM_RESERVED:], expected[NUM_RESERVED:], rtol=0, atol=1e-12
        )


def test_rows_that_no_batch_touched_keep_every_bit(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    model = make_model()
    before = model.embeddings.each()[1].weight_RD[-1].clone()
    _trainer(model, schema).fit(make_batch(50))
    assert torch.equal(model.embeddings.each()[1].weight_RD[-1], before)


def test_reserved_rows_that_were_not_trained_become_the_mean_of_those_that_were(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    model = make_model()
    _trainer(model, schema).fit(make_batch(200))
    for table, trained in zip(model.embeddings.each(), (slice(3, 8), slice(3, 11)), strict=True):
        mean_D = table.weight_RD[trained].mean(dim=0)
        torch.testing.assert_close(table.weight_RD[:NUM_RESERVED], mean_D.expand(3, -1))


def test_a_progress_bar_changes_nothing(
    schema: Schema,
    make_batch: MakeBatch,
    make_model: MakeModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = []
    for progress in (False, True):
        model = make_model()
        _trainer(model, schema, max_epochs=1, progress=progress).fit(make_batch(100))
        runs.append(_weights(model))
        assert bool(capsys.readouterr().err) == progress
    assert _same(*runs)


def test_the_history_has_a_column_for_every_loss_and_metric(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    batch = make_batch(100)
    train = ["train_loss", "train_loss.ctr", "train_loss.rating", "train_loss.genre"]
    valid = [
        *("valid.ctr.auc", "valid.ctr.log_loss", "valid.ctr.accuracy"),
        *("valid.ctr.pcoc", "valid.ctr.ece"),
        *("valid.rating.rmse", "valid.rating.mae"),
        *("valid.genre.log_loss", "valid.genre.accuracy"),
    ]
    alone = _trainer(make_model(), schema, observe_every=0).fit(batch).history
    phases = [f"{phase}_seconds" for phase in ("read", "forward", "backward", "optimizer")]
    assert alone.columns == ["epoch", *train, *phases, "train_seconds", "seconds"]
    assert (alone[phases].sum_horizontal() <= alone["train_seconds"]).all()
    assert alone["epoch"].to_list() == [1, 2, 3]
    both = _trainer(make_model(), schema, observe_every=0).fit(batch, batch).history
    train_columns = ["epoch", *train, *phases, "train_seconds"]
    assert both.columns == [*train_columns, "valid_loss", *valid, "seconds"]
    assert alone[train].equals(both[train])
    assert (both["seconds"] >= both["train_seconds"]).all()


def test_losses_of_the_history_are_means_over_observed_rows(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    """Nothing moves at these rates, so batches of any size give the loss of all rows at once.

    Ratings are seen in 3 rows, so most batches have none: those must not count as a loss of 0.
    """
    batch = make_batch(50)
    assert batch.states is not None
    batch.states[3:, 1] = MISSING
    batch.states[:3, 1] = 0
    still = {"optimizer": SGD(1e-30), "table_optimizer": RowWiseAdagrad(1e-30), "max_epochs": 1}
    runs = []
    for batch_size in (50, 7):
        model = make_model()
        model.learn_outputs(batch)
        trainer = _trainer(model, schema, batch_size=batch_size, **still)
        runs.append(trainer.fit(batch, batch).history.row(0, named=True))
    names = [f"train_loss.{task.name}" for task in schema.tasks]
    for name in names:
        assert runs[1][name] == pytest.approx(runs[0][name], rel=1e-5)
    total = runs[1][names[0]] + 0.5 * runs[1][names[1]] + runs[1][names[2]]
    assert runs[1]["train_loss"] == pytest.approx(total, rel=1e-9)
    model = make_model()
    model.learn_outputs(batch)
    rows, everything = RowTensors(batch, CPU), torch.arange(50)
    losses_T = task_losses(
        model(rows.take(everything)).headed,
        rows.targets(everything),
        schema.tasks,
        model.outputs.mean_T,
        model.outputs.std_T,
        model.heads,
    ).means_T
    assert [runs[0][name] for name in names] == pytest.approx(losses_T.tolist(), rel=1e-5)


def test_what_the_ids_say_is_learned(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    train, test, model = make_batch(2000), make_batch(1000, seed=1), make_model()
    model.learn_outputs(train)
    _trainer(model, schema, max_epochs=12, optimizer=Adam(0.01)).fit(train)
    report = evaluate_rows(model, schema, test, RowTensors(test, CPU))
    assert report.value("ctr", "auc") > 0.87  # 0.9 is the best there is
    assert report.value("rating", "rmse") < 0.5  # 0.3 is; the mean alone gives 1.2
    assert report.value("genre", "accuracy") > 0.98


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    def run(seed: int) -> Weights:
        with seeded(5, CPU):
            model = make_model(dropout=0.3)
            _trainer(model, schema, seed=seed, reset_tables=True).fit(make_batch(150))
        return _weights(model)

    first = run(1)
    torch.randn(3)  # the caller's random state is of no account
    assert _same(first, run(1))
    assert not _same(first, run(2))


def test_the_callers_random_state_is_left_alone(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    torch.manual_seed(77)
    expected = torch.randn(4)
    torch.manual_seed(77)
    with seeded(1, CPU):
        model = make_model(dropout=0.3)
        _trainer(model, schema, reset_tables=True).fit(make_batch(100))
    assert torch.equal(torch.randn(4), expected)


def test_row_order_takes_nothing_from_the_global_random_state(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    trainer = _trainer(make_model(), schema)
    before = torch.get_rng_state()
    trainer.fit(make_batch(100))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("with_valid", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_trains_in_training_mode_and_is_left_in_evaluation_mode(
    schema: Schema,
    make_batch: MakeBatch,
    make_model: MakeModel,
    training: bool,
    with_valid: bool,
) -> None:
    model, batch = make_model().train(training), make_batch(30)
    modes: list[bool] = []
    model.heads.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    _trainer(model, schema, max_epochs=2).fit(batch, batch if with_valid else None)
    one_epoch = [True, False] if with_valid else [True]  # a step; one pass for losses and metrics
    assert modes == one_epoch * 2
    assert not any(part.training for part in model.modules())


@pytest.mark.parametrize(("epochs", "monitored"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("settings", [{"optimizer": SGD(1e30)}, {"optimizer": Adam(1e38)}])
def test_divergence_is_an_error_even_in_the_last_step(
    schema: Schema,
    make_batch: MakeBatch,
    make_model: MakeModel,
    settings: dict[str, Any],
    epochs: int,
    monitored: bool,
) -> None:
    """Each epoch is one step, and the loss before the first is finite: validation must see it."""
    batch = make_batch(30)
    trainer = _trainer(make_model(), schema, max_epochs=epochs, **settings)
    with pytest.raises(FloatingPointError, match=r"diverged in epoch [12]"):
        trainer.fit(batch, batch if monitored else None)


def test_weights_that_are_not_finite_are_an_error_without_validation_rows(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    model, batch = make_model(), make_batch(30)
    trainer = _trainer(model, schema, max_epochs=1)
    take = trainer.stepper.take

    def broken(*arguments: Any, **named: Any) -> TaskLosses:
        losses = take(*arguments, **named)
        model.embeddings.each()[0].weight_RD[4, 0] = math.nan
        return losses

    trainer.stepper.take = broken  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match=r"epoch 1.*embeddings.tables.0.weight_RD"):
        trainer.fit(batch)


@pytest.mark.parametrize("reset", [True, False])
def test_tables_are_drawn_afresh_before_every_epoch_but_the_first(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel, reset: bool
) -> None:
    model = make_model()
    trainer = _trainer(model, schema, reset_tables=reset, max_epochs=3)
    drawn = _weights(model)
    starts: list[tuple[float, float]] = []
    train_epoch = trainer._train_epoch

    def watched(*arguments: Any) -> dict[str, float]:
        largest = max(float(table.weight_RD.abs().max()) for table in model.embeddings.each())
        states = trainer.stepper.table_optimizer.state().values()
        seen = max(float(state.max()) for state in states)
        assert starts or _same(_weights(model), drawn)
        starts.append((largest, seen))
        return train_epoch(*arguments)

    trainer._train_epoch = watched  # type: ignore[method-assign]
    trainer.fit(make_batch(100))
    fresh = [largest < 0.06 and seen == 0 for largest, seen in starts]
    assert fresh == [True, reset, reset]
    assert max(float(table.weight_RD.abs().max()) for table in model.embeddings.each()) > 0.06


@pytest.mark.parametrize(("rows_per_batch", "resets"), [(4, True), (5, False)])
def test_tables_are_reset_by_default_where_an_epoch_has_32_batches(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel, rows_per_batch: int, resets: bool
) -> None:
    batch = make_batch(128)
    weights = []
    for chosen in (None, resets):
        model = make_model()
        settings = {"reset_tables": chosen, "batch_size": rows_per_batch, "max_epochs": 2}
        _trainer(model, schema, **settings).fit(batch)
        weights.append(_weights(model))
    assert _same(*weights)


def test_resetting_tables_keeps_the_dense_layers(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel
) -> None:
    model = make_model()
    trainer = _trainer(model, schema)
    dense = {name: w.clone() for name, w in model.named_parameters() if w.requires_grad}
    trainer.stepper.table_optimizer.reset()
    assert all(torch.equal(model.get_parameter(name), dense[name]) for name in dense)


@pytest.mark.parametrize("num_rows", [1, 2, 65])
def test_odd_numbers_of_rows_are_trained_on(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel, num_rows: int
) -> None:
    trained = _trainer(make_model(), schema).fit(make_batch(num_rows))
    assert trained.history["train_loss"].is_finite().all()
