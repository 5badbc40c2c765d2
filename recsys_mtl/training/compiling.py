"""torch.compile for networks that are differentiated more than once."""

from __future__ import annotations

from collections.abc import Callable

from recsys_mtl.network import Embedded, Inputs, MultiTaskModel, Predicted

_TAG = "no donated buffers"


def compiled(model: MultiTaskModel) -> Callable[[Embedded, Inputs], Predicted]:
    """Return the compiled network, through which looks and balances may go back more than once.

    For that, nothing kept for the way back may be overwritten. PyTorch reads this setting whenever it goes
    back, and its cache on disk takes no notice of it: hence a tag, without which what it had kept of the
    same network with the other setting gave wrong gradients in silence (seen in 2.13).
    """
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False
    if _TAG not in torch.compiler.config.cache_key_tag:
        torch.compiler.config.cache_key_tag += _TAG
    return torch.compile(model.from_embedded)
