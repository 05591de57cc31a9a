"""ICAE's network: a residual encoder onto the unit sphere, and transposed convolutions back."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, normalize, pad, relu

from clusterlab.networks.autoencoder import Autoencoder
from clusterlab.networks.conv import image_shape
from clusterlab.networks.products import Convolution, Doubling


class ResidualAutoencoder(Autoencoder):
    """Build the autoencoder of Table 1 of ICAE (Zhu, Wang, 2019) for any image size.

    A 3x3 convolution, residual stages that halve the side, a linear embedding of length 1; the
    decoder doubles the side as often with transposed convolutions. Batch normalisation and ReLU
    throughout, the last convolution linear. Images are padded with black to sides that halve as
    often as there are stages (28 to 32, as in the paper), their values brought from [0, 1] to
    [-1, 1], and both undone at the end: here and not in the data, so that pictures, new images and
    other methods on this network need to know of neither.

    The paper has the filters (32, 64, 128, 256, 512), four stages, where its code has five; a small
    one is (16, 32, 64, 64). Stages and blocks are those of the code.

    Args:
        input_shape: ``(C, H, W)``, sides of at least 8.
        embedding_dim: M.
        filters: Of the first convolution and of each stage.

    Raises:
        UserError: If samples are vectors, or a side is shorter than 8.

    Example:
        >>> import torch
        >>> network = ResidualAutoencoder((1, 28, 28), embedding_dim=60, filters=(16, 32, 64, 64))
        >>> z, x_hat = network(torch.rand(2, 1, 28, 28))
        >>> z.shape, x_hat.shape, z.detach().norm(dim=1).round()
        (torch.Size([2, 60]), torch.Size([2, 1, 28, 28]), tensor([1., 1.]))
    """

    images_only = True

    def __init__(
        self,
        input_shape: Sequence[int],
        embedding_dim: int,
        filters: Sequence[int] = (32, 64, 128, 256, 512),
    ) -> None:
        channels, height, width = image_shape(input_shape)
        n_halvings = len(filters) - 1
        low, wide = (-(-side >> n_halvings) for side in (height, width))  # rounded up
        flat = filters[-1] * low * wide
        pairs = list(pairwise(filters))
        encoder = nn.Sequential(
            nn.Conv2d(channels, filters[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(filters[0]),
            nn.ReLU(),
            *(ResidualBlock(before, after) for before, after in pairs),
            nn.Flatten(),
            nn.Linear(flat, embedding_dim),
        )
        decoder = nn.Sequential(
            nn.Linear(embedding_dim, flat),
            nn.Unflatten(1, (filters[-1], low, wide)),
            *(up_block(before, after) for after, before in reversed(pairs)),
            nn.Conv2d(filters[0], channels, 1),
        )
        super().__init__(encoder, decoder, embedding_dim)
        extra = [(side << n_halvings) - real for side, real in ((low, height), (wide, width))]
        self.size = (height, width)
        self.top, self.left = (missing // 2 for missing in extra)
        self.padding = (self.left, extra[1] - self.left, self.top, extra[0] - self.top)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU

    def encode(self, x: Tensor) -> Tensor:
        """Return embeddings of length 1, shape ``(B, M)``, of images ``(B, C, H, W)``."""
        return normalize(super().encode(2 * pad(x, self.padding) - 1))

    def decode(self, z: Tensor, frozen: bool = False) -> Tensor:
        """Return images ``(B, C, H, W)`` of embeddings ``(B, M)``."""
        height, width = self.size
        x_hat = super().decode(z, frozen)
        return (x_hat[..., self.top : self.top + height, self.left : self.left + width] + 1) / 2


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the first of stride 2, added to a 1x1 convolution of stride 2.

    Args:
        before: Channels that come in.
        after: Channels that go out.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = Convolution(before, after, 3, stride=2, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(after)
        self.second = Convolution(after, after, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(after)
        self.shortcut = Convolution(before, after, 1)  # of every second pixel

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, after, H / 2, W / 2)``."""
        y = relu(self.first_norm(self.first(x)))
        # Not by a convolution of stride 2: on a CPU without AVX-512 PyTorch 2.13 then writes past
        # its memory, in channels-last with 3 or 4 channels, and the process dies. Nor by slices,
        # whose gradient is not channels-last: steps then take 1.12 times as long.
        every_second = avg_pool2d(x, 1, stride=2)
        return relu(self.second_norm(self.second(y)) + self.shortcut(every_second))


def up_block(before: int, after: int) -> nn.Sequential:
    """Return layers that double the side: a transposed and a 3x3 convolution."""
    between = max(before // 2, 1)
    return nn.Sequential(
        Doubling(before, between),
        Convolution(between, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )
