"""A pass over the whole data set that ends with the same tensor on every rank."""

from collections.abc import Callable

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor, nn

from clusterlab.data.datamodule import Batches


def is_rank_zero() -> bool:
    """Tell whether this process writes files and messages; true without other processes.

    Known before a Trainer exists: Lightning tells the processes it starts by their environment.
    """
    return getattr(rank_zero_only, "rank", 0) == 0


def full_pass(
    function: Callable[[Tensor], Tensor], module: nn.Module, loader: Batches, device: torch.device
) -> Tensor:
    """Map a loader's samples in the loader's order; shape ``(n, d)``, ``float32``, on ``device``.

    Runs in evaluation mode, without gradients and outside autocast: q is made of squares of small
    differences, for which bf16 has too few digits.

    Args:
        function: From images ``(B, C, H, W)`` to ``(B, d)``, such as ``network.encode``.
        module: What it is a part of, to be put into evaluation mode and back.
        loader: The images.
        device: Where the module is.
    """
    training = module.training
    module.eval()
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        rows = torch.cat([function(batch["x"].to(device)).float() for batch in loader])
    module.train(training)
    return rows


def interleave(gathered: Tensor, n_samples: int) -> Tensor:
    """Put shards dealt out like cards back in order and drop the padding.

    Args:
        gathered: Shape ``(W, n, d)``; row ``i`` of shard ``r`` is sample ``i * W + r``.
        n_samples: N, at most ``W * n``.

    Returns:
        Shape ``(N, d)``.

    Example:
        >>> interleave(torch.tensor([[[0], [2]], [[1], [0]]]), 3).flatten()
        tensor([0, 1, 2])
    """
    return gathered.transpose(0, 1).flatten(0, 1)[:n_samples]
