import numpy as np
import polars as pl
import pytest
import torch

from recsys_mtl.encoding import OBSERVED, Batch, Block, InputLayout, Part, Ragged, TableSize
from recsys_mtl.network import MMoE, MultiTaskModel, RowTensors, Towers, score_rows
from recsys_mtl.network import model as model_file
from recsys_mtl.network.model import predict_logits
from recsys_mtl.schema import Binary, Multiclass, Regression

TASKS = (
    Binary("ctr", label="click"),
    Regression("rating", label="rating"),
    Multiclass("genre", label="genre", num_classes=3),
)
LAYOUT = InputLayout(
    (TableSize("user", 20, None), TableSize("tag", 9, 2)), ("user",), ("tag",), dense_dim=2
)
CPU = torch.device("cpu")


def _batch(num_rows: int) -> Batch:
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, 4, size=num_rows)
    total = int(lengths.sum())
    tags = Ragged(
        rng.integers(9, size=total),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        rng.random(total).astype(np.float32),
    )
    block = Block(
        rng.integers(20, size=(num_rows, 1)),
        (tags,),
        rng.normal(size=(num_rows, 2)).astype(np.float32),
    )
    labels = np.stack(
        [rng.random(num_rows) < 0.2, rng.normal(3, 1, num_rows), rng.integers(3, size=num_rows)],
        axis=1,
    ).astype(np.float32)
    return Batch(
        num_rows,
        (Part(block),),
        pl.DataFrame(),
        labels=labels,
        states=np.full(labels.shape, OBSERVED, np.uint8),
        weights=np.ones_like(labels),
    )


def _model(*, dropout: float = 0.0) -> MultiTaskModel:
    torch.manual_seed(0)
    return MultiTaskModel(
        LAYOUT,
        TASKS,
        sharing=MMoE(3, expert_dims=(8, 4), dropout=dropout),
        heads=Towers((6,)),
        embedding_dim=3,
    )


def _take(batch: Batch, rows: slice) -> Batch:
    """Cut rows out of a batch without the code under test."""
    (part,) = batch.parts
    tags = part.block.lists[0]
    offsets = tags.offsets[rows.start : rows.stop + 1]
    inside = slice(offsets[0], offsets[-1])
    cut = Ragged(tags.values[inside], offsets - offsets[0], tags.weights[inside])
    block = Block(part.block.ids[rows], (cut,), part.block.dense[rows])
    return Batch(rows.stop - rows.start, (Part(block),), pl.DataFrame())


def test_input_of_the_structure_is_vectors_then_numbers() -> None:
    """Narrow tables first: the tag's 2, the user's 3, then the 2 numbers."""
    model, batch = _model(), _batch(5)
    inputs = RowTensors(batch, CPU).take(torch.arange(5))
    seen = {}
    model.sharing.register_forward_pre_hook(lambda _, args: seen.update(x_BVI=args[0]))
    model(inputs)
    x_BI = seen["x_BVI"][:, 0]
    narrow, wide = (vectors_SD.view(5, -1) for vectors_SD in model.embeddings(inputs).vectors)
    assert x_BI.shape == (5, 7)
    assert torch.equal(x_BI, torch.cat([narrow, wide, inputs.dense_BN], 1))


@pytest.mark.parametrize("num_rows", [0, 1, 7])
def test_a_batch_of_any_size_is_scored(num_rows: int) -> None:
    model, batch = _model(), _batch(num_rows)
    ctr, rating, genre = score_rows(model, RowTensors(batch, CPU))
    assert (ctr.shape, rating.shape, genre.shape) == ((num_rows,), (num_rows,), (num_rows, 3))
    predicted = model(RowTensors(batch, CPU).take(torch.arange(num_rows)))
    assert predicted.logits_BZ.shape == (num_rows, 5)
    assert [gate_BE.shape for gate_BE in predicted.shared.gates[0]] == [(num_rows, 3)] * 3


def test_rows_are_scored_alike_whatever_stands_beside_them() -> None:
    """To 1e-6 in float32: matrix products of other shapes may add in another order."""
    model, batch = _model(), _batch(9)
    whole = score_rows(model, RowTensors(batch, CPU))
    for start, stop in [(0, 1), (1, 4), (4, 9)]:
        cut = score_rows(model, RowTensors(_take(batch, slice(start, stop)), CPU))
        for part, scores in zip(cut, whole, strict=True):
            torch.testing.assert_close(part, scores[start:stop], rtol=0, atol=1e-6)


def test_scoring_in_chunks_keeps_every_row_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = _model(), RowTensors(_batch(11), CPU)
    whole = predict_logits(model, rows)
    monkeypatch.setattr(model_file, "SCORE_ROWS", 4)
    chunked = predict_logits(model, rows)
    assert chunked.shape == (11, 5)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_scoring_is_done_in_evaluation_mode_and_leaves_the_mode_as_it_was(training: bool) -> None:
    model, rows = _model(dropout=0.9), RowTensors(_batch(6), CPU)
    model.train(training)
    first, again = predict_logits(model, rows), predict_logits(model, rows)
    assert torch.equal(first, again)
    assert all(part.training == training for part in model.modules())


def test_the_mode_is_restored_when_scoring_fails() -> None:
    model = _model().train()
    model.heads.register_forward_pre_hook(_fail)
    with pytest.raises(ZeroDivisionError):
        predict_logits(model, RowTensors(_batch(2), CPU))
    assert model.training


def _fail(*_: object) -> None:
    raise ZeroDivisionError


def test_before_training_scores_are_the_base_rates() -> None:
    """Exactly where the inputs are zero; on average within a fifth where they are not."""
    batch = _batch(400)
    model = _model()
    model.learn_outputs(batch)
    assert batch.labels is not None
    rates = [batch.labels[:, 0].mean(), batch.labels[:, 1].mean()]
    shares = np.bincount(batch.labels[:, 2].astype(int)) / 400
    ctr, rating, genre = score_rows(model, RowTensors(batch, CPU))
    assert [ctr.mean(), rating.mean()] == pytest.approx(rates, rel=0.2)
    for table in model.embeddings.each():
        torch.nn.init.zeros_(table.weight_RD)
    batch.parts[0].block.dense[:] = 0
    ctr, rating, genre = score_rows(model, RowTensors(batch, CPU))
    np.testing.assert_allclose(ctr, rates[0], rtol=1e-5)
    np.testing.assert_allclose(rating, rates[1], rtol=1e-5)
    np.testing.assert_allclose(genre, np.tile(shares, (400, 1)), rtol=1e-5)


def test_the_same_seed_draws_the_same_model() -> None:
    first, again = _model().state_dict(), _model().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_tables_are_saved_but_not_trained_by_autograd() -> None:
    model = _model()
    tables = {f"features.embeddings.tables.{number}.weight_RD" for number in range(2)}
    assert tables <= set(model.state_dict())
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == tables


def test_a_table_of_numbers_alone_needs_no_embedding() -> None:
    layout = InputLayout((), (), (), dense_dim=2)
    model = MultiTaskModel(layout, TASKS, sharing=MMoE(2), heads=Towers(), embedding_dim=3)
    block = Block(np.zeros((3, 0), np.int64), (), np.ones((3, 2), np.float32))
    ctr, _, _ = score_rows(model, RowTensors(Batch(3, (Part(block),), pl.DataFrame()), CPU))
    assert ctr.shape == (3,)
