"""ESMM and AITM against torch-rechub's, with its weights copied into ours.

Where the peer departs from the papers, and how that is made equal here:

- Its MLP puts a batch normalisation behind every linear layer. In evaluation, with fresh running
  statistics (mean 0, variance 1), that is the scale 1 / sqrt(1 + eps); the test folds it, with the
  affine part, into the linear layer copied from.
- It returns probabilities, in the order cvr, ctr, ctcvr; ours returns logits by task.
- It embeds the features itself, so its embeddings are computed apart and handed to ours.
- Its ESMM leaves the loss to its trainer, which takes the cross-entropy of the product as it is.
- Its AITM has no calibrator, so the penalty is not compared, and no layers between transfer and
  logits but those of its tower: they are our `output_dims`. It puts the query before the
  information among the two tokens, which a sum over tokens does not notice. It divides scores by
  a square root taken in float32, right to about 1e-8, whatever the dtype of the model.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recsys_mtl.encoding import OBSERVED
from recsys_mtl.network.heads import AITM, ESMM, Headed
from recsys_mtl.network.inputs import Targets
from recsys_mtl.schema import Binary

pytest.importorskip("torch_rechub", reason="parity with torch-rechub needs it installed")
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models import multi_task

ROWS = 17
EXACT = {"rtol": 0, "atol": 1e-12}


def _features() -> list[Any]:
    return [SparseFeature(name, vocab_size=11, embed_dim=3) for name in ("user", "item")]


def _rows() -> dict[str, Tensor]:
    return {name: torch.randint(11, (ROWS,)) for name in ("user", "item")}


def _stirred(peer: Any) -> Any:
    """Give every weight, those of the normalisations too, a value of no special kind."""
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return peer.double().eval()


def _copy(peer: nn.Module, *ours: nn.Module) -> None:
    """Copy the linear layers of a peer's MLP, each with the normalisation behind it folded in."""
    targets = [m for module in ours for m in module.modules() if isinstance(m, nn.Linear)]
    layers = list(peer.mlp)  # type: ignore[arg-type]
    places = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
    for place, target in zip(places, targets, strict=True):
        weight, bias = layers[place].weight, layers[place].bias
        norm = layers[place + 1] if place + 1 < len(layers) else None
        if isinstance(norm, nn.BatchNorm1d):
            assert not norm.running_mean.any()
            assert (norm.running_var == 1).all()
            scale = norm.weight / (1 + norm.eps) ** 0.5
            weight, bias = weight * scale[:, None], bias * scale + norm.bias
        with torch.no_grad():
            target.weight.copy_(weight)
            target.bias.copy_(bias)


def test_esmm_gives_the_probabilities_of_torch_rechub_and_their_joint_loss() -> None:
    user, item = _features()
    params = {"dims": [8, 5]}
    peer = _stirred(multi_task.ESMM([user], [item], cvr_params=params, ctr_params=params))
    rows = _rows()
    cvr_B, ctr_B, ctcvr_B = peer(rows).unbind(dim=1)
    tasks = Binary("ctr", label="click"), Binary("cvr", label="buy", within="ctr", joint="ctcvr")
    ours = ESMM((8, 5)).build(6, tasks).double()
    _copy(peer.tower_ctr, ours.towers[0])
    _copy(peer.tower_cvr, ours.towers[1])
    x_BH = peer.embedding(rows, [user, item], squeeze_dim=True)
    logits_BZ = ours((x_BH, x_BH)).logits_BZ
    torch.testing.assert_close(logits_BZ.sigmoid(), torch.stack((ctr_B, cvr_B), dim=1), **EXACT)
    log_s_B, _ = ours.joints[1].logs(logits_BZ)
    torch.testing.assert_close(log_s_B.exp(), ctcvr_B, **EXACT)
    buys_B = torch.randint(2, (ROWS,)).double()
    observed_BT = torch.full((ROWS, 2), OBSERVED)
    labels_BT = torch.stack((torch.ones_like(buys_B), buys_B), dim=1)
    targets = Targets(labels_BT, torch.ones(ROWS, 2), observed_BT)
    losses = ours.row_losses(1, Headed(logits_BZ), targets).losses_B
    torch.testing.assert_close(losses.mean(), nn.BCELoss()(ctcvr_B, buys_B), rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_tasks", [2, 3])
def test_aitm_gives_the_probabilities_of_torch_rechub(num_tasks: int) -> None:
    features = _features()
    towers = [{"dims": [4]}] * num_tasks
    peer = _stirred(multi_task.AITM(features, num_tasks, {"dims": [8, 5]}, towers))
    names = ["view", "cart", "buy"][:num_tasks]
    tasks = [
        Binary(name, label=name, parents=tuple(names[max(k - 1, 0) : k]))
        for k, name in enumerate(names)
    ]
    ours = AITM((8, 5), output_dims=(4,)).build(6, tasks).double()
    for k, tower in enumerate(ours.towers):
        _copy(peer.bottoms[k], tower.query)
        _copy(peer.towers[k], tower.hidden, tower.output)
        if k > 0:
            _copy(peer.info_gates[k - 1], tower.transfer.info)
            attention = peer.aits[k - 1]
            tower.transfer.h1.load_state_dict(attention.q_layer.state_dict())
            tower.transfer.h2.load_state_dict(attention.k_layer.state_dict())
            tower.transfer.h3.load_state_dict(attention.v_layer.state_dict())
    rows = _rows()
    x_BH = peer.embedding(rows, features, squeeze_dim=True)
    found_BZ = ours((x_BH,) * num_tasks).logits_BZ.sigmoid()
    torch.testing.assert_close(found_BZ, peer(rows), rtol=0, atol=1e-9)
