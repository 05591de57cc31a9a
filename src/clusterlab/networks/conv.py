"""The convolutional autoencoder of DCEC."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from clusterlab.errors import problem
from clusterlab.networks.autoencoder import Autoencoder, glorot_

SMALLEST_SIDE = 8  # a shorter side leaves nothing for the third convolution


class ConvAutoencoder(Autoencoder):
    """Build the CAE of Fig. 1 of DCEC (Guo et al., ICONIP 2017) for any image size.

    Three convolutions of stride 2 (5x5, 5x5, 3x3), each with a ReLU, flatten, a linear embedding;
    the decoder mirrors it with transposed convolutions, and its output is linear. For 28x28x1 the
    sizes are 28, 14, 7, 3 and back.

    As in the authors' code the third convolution is padded along sides that divide by 8 and
    unpadded along others. Keras pads an even side (1, 2) where this pads (2, 1): the same network
    on mirrored images.

    Args:
        input_shape: ``(C, H, W)``, sides of at least 8.
        embedding_dim: d; the paper takes the number of clusters.
        filters: Filters of the three convolutions.

    Raises:
        UserError: If samples are vectors, a side is shorter than 8, or there are not three filters.

    Example:
        >>> import torch
        >>> z, x_hat = ConvAutoencoder((1, 28, 28), embedding_dim=10)(torch.zeros(2, 1, 28, 28))
        >>> z.shape, x_hat.shape
        (torch.Size([2, 10]), torch.Size([2, 1, 28, 28]))
    """

    images_only = True

    def __init__(
        self,
        input_shape: Sequence[int],
        embedding_dim: int,
        filters: Sequence[int] = (32, 64, 128),
    ) -> None:
        channels, *size = image_shape(input_shape)
        check_filters(filters)
        height, width = (1 if side % 8 == 0 else 0 for side in size)
        kernels, paddings = (5, 5, 3), ((2, 2), (2, 2), (height, width))
        widths = [channels, *filters]

        sizes = [tuple(size)]  # what each convolution sees, so that the mirror can return to it
        for kernel, padding in zip(kernels, paddings, strict=True):
            before = zip(sizes[-1], padding, strict=True)
            sizes.append(tuple((side + 2 * pad - kernel) // 2 + 1 for side, pad in before))
        flat = widths[-1] * sizes[-1][0] * sizes[-1][1]

        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = [
            nn.Linear(embedding_dim, flat),
            nn.ReLU(),
            nn.Unflatten(1, (widths[-1], *sizes[-1])),
        ]
        for i, (kernel, padding) in enumerate(zip(kernels, paddings, strict=True)):
            encoder += [nn.Conv2d(widths[i], widths[i + 1], kernel, 2, padding), nn.ReLU()]
        for i in reversed(range(3)):
            kernel, padding = kernels[i], paddings[i]
            missing = tuple(  # 0 or 1: stride 2 maps two input sizes to one output size
                big - ((small - 1) * 2 - 2 * p + kernel)
                for big, small, p in zip(sizes[i], sizes[i + 1], padding, strict=True)
            )
            decoder.append(
                nn.ConvTranspose2d(widths[i + 1], widths[i], kernel, 2, padding, missing)  # type: ignore[arg-type]
            )
            if i > 0:
                decoder.append(nn.ReLU())
        encoder += [nn.Flatten(), nn.Linear(flat, embedding_dim)]

        super().__init__(nn.Sequential(*encoder), nn.Sequential(*decoder), embedding_dim)
        self.apply(glorot_)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU


def check_filters(filters: Sequence[int]) -> None:
    """Refuse filters for other than three convolutions.

    Raises:
        UserError: If there are fewer or more.
    """
    if len(filters) != 3:
        remedy = "set network.filters=[32,64,128]"
        raise problem("the filters of three convolutions", list(filters), remedy)


def image_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    """Return ``(C, H, W)`` of samples that three convolutions can halve.

    Raises:
        UserError: If they are vectors, or a side is shorter than 8.
    """
    if len(input_shape) != 3:
        got = f"vectors of {math.prod(input_shape)} numbers"
        raise problem("images for convolutions", got, "choose network=mlp, and model=dcec or cdc")
    channels, height, width = input_shape
    if min(height, width) < SMALLEST_SIDE:
        raise problem(
            f"images of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} pixels",
            f"{height}x{width}",
            "enlarge them first (data.size=32 for a folder)",
        )
    return channels, height, width
