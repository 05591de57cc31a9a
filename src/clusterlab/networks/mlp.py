"""The fully connected autoencoder of DEC, and the samples as they are."""

import math
from collections.abc import Sequence
from typing import Literal

from torch import nn

from clusterlab.networks.autoencoder import Autoencoder, fan_in_, glorot_


class MLPAutoencoder(Autoencoder):
    """Build the d-500-500-2000-10 autoencoder of DEC (Xie et al., ICML 2016) for any samples.

    A ReLU after every layer except embedding and output; the decoder mirrors the encoder. The
    papers call it SAE, for the stacked layer-by-layer pretraining it once had; here as in DCEC it
    is trained end to end.

    Weights are Glorot-uniform with zero biases, Keras' defaults and those of the DCEC network, or
    uniform within ``1 / sqrt(inputs)``, as CDC's code has them for text and Fashion-MNIST.

    DEC scales each data set so that the mean square of a pixel is 1, and its weights are only
    trained far enough like this: with pixels in [0, 1], 400 epochs of SGD at 0.01 leave SAE +
    k-means on USPS at an ACC of 0.41. On MNIST-test a mean square of 1 is not enough either: 0.51
    (two seeds), where the paper has 0.67. Public code of this family divides MNIST by 50, a mean
    square of 2.6; the error, as a part of it, then falls much faster (after 30 epochs 0.30 against
    0.41) and the ACC is 0.64, and so it is the ``mlp_scale`` of both MNIST sets. The starting
    weights are no cause: ``fan_in`` stays above 0.55 for 40 epochs.

    Args:
        input_shape: ``(C, H, W)``, whose product is d, or ``(d,)``.
        embedding_dim: Width of the embedding; the paper takes 10.
        hidden: Widths between input and embedding.
        scale: Factor between the samples and what the network sees.
        shift: What the network sees as zero.
        init: ``glorot`` or ``fan_in``.

    Example:
        >>> import torch
        >>> z, x_hat = MLPAutoencoder((1, 28, 28), embedding_dim=10)(torch.zeros(2, 1, 28, 28))
        >>> z.shape, x_hat.shape
        (torch.Size([2, 10]), torch.Size([2, 1, 28, 28]))
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        embedding_dim: int,
        hidden: Sequence[int] = (500, 500, 2000),
        scale: float = 1.0,
        init: Literal["glorot", "fan_in"] = "glorot",
        shift: float = 0.0,
    ) -> None:
        widths = [math.prod(input_shape), *hidden, embedding_dim]
        encoder: list[nn.Module] = [nn.Flatten()]
        decoder: list[nn.Module] = []
        for i in range(len(widths) - 1):
            encoder += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
            decoder += [nn.Linear(widths[-1 - i], widths[-2 - i]), nn.ReLU()]
        decoder[-1] = nn.Unflatten(1, tuple(input_shape))  # in place of a ReLU
        encoder.pop()
        halves = nn.Sequential(*encoder), nn.Sequential(*decoder)
        super().__init__(*halves, embedding_dim, scale, shift)
        self.apply({"glorot": glorot_, "fan_in": fan_in_}[init])


class Pixels(Autoencoder):
    """Embed a sample as itself: nothing to train, for methods that cluster the data as it is.

    Args:
        input_shape: ``(C, H, W)``, for an embedding of their product of dimensions, or ``(d,)``.

    Example:
        >>> import torch
        >>> z, x_hat = Pixels((1, 2, 2))(torch.arange(4.0).view(1, 1, 2, 2))
        >>> z
        tensor([[0., 1., 2., 3.]])
    """

    def __init__(self, input_shape: Sequence[int]) -> None:
        decoder = nn.Unflatten(1, tuple(input_shape))
        super().__init__(nn.Flatten(), decoder, embedding_dim=math.prod(input_shape))
