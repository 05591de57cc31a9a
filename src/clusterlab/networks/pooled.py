"""IDCEC's networks: a convolutional autoencoder that pools, and the classifier of module B."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, pixel_shuffle

from clusterlab.errors import problem
from clusterlab.networks.autoencoder import Autoencoder, glorot_
from clusterlab.networks.conv import check_filters, image_shape

SLOPE = 0.01  # of LeakyReLU below zero; the paper does not say, this is PyTorch's


class PooledAutoencoder(Autoencoder):
    """Build the autoencoder of Fig. 2 of IDCEC for any image size.

    Six convolutions of stride 1, LeakyReLU: three (5x5, 5x5, 3x3), each with a 2x2 max pooling,
    then a linear embedding; the mirror up-samples to the size that the matching pooling saw, which
    makes 28 -> 14 -> 7 -> 3 and back of any side. The last convolution is linear. Pooling comes
    before LeakyReLU, which grows with its input: the same, on a quarter of the pixels.

    The paper gives the number of convolutions and nothing of their sizes; these are DCEC's.

    Args:
        input_shape: ``(C, H, W)``, sides of at least 8.
        embedding_dim: Width of the embedding; the paper takes the number of clusters.
        filters: Filters of the three convolutions.

    Raises:
        UserError: If samples are vectors, a side is shorter than 8, or there are not three filters.

    Example:
        >>> import torch
        >>> z, x_hat = PooledAutoencoder((3, 55, 55), embedding_dim=41)(torch.zeros(2, 3, 55, 55))
        >>> z.shape, x_hat.shape
        (torch.Size([2, 41]), torch.Size([2, 3, 55, 55]))
    """

    images_only = True

    def __init__(
        self,
        input_shape: Sequence[int],
        embedding_dim: int,
        filters: Sequence[int] = (32, 64, 128),
    ) -> None:
        channels, height, width = image_shape(input_shape)
        check_filters(filters)
        widths, kernels = [channels, *filters], (5, 5, 3)
        sizes = [(height >> i, width >> i) for i in range(4)]
        flat = widths[-1] * sizes[-1][0] * sizes[-1][1]
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = [
            nn.Linear(embedding_dim, flat),
            nn.LeakyReLU(SLOPE),
            nn.Unflatten(1, (widths[-1], *sizes[-1])),
        ]
        for i, kernel in enumerate(kernels):
            encoder += [
                nn.Conv2d(widths[i], widths[i + 1], kernel, padding="same"),
                nn.MaxPool2d(2),
                nn.LeakyReLU(SLOPE),
            ]
        for i in reversed(range(3)):
            decoder += [
                UpConv2d(widths[i + 1], widths[i], kernels[i], sizes[i]),
                nn.LeakyReLU(SLOPE),
            ]
        decoder.pop()  # pixels are linear
        encoder += [nn.Flatten(), nn.Linear(flat, embedding_dim)]
        super().__init__(nn.Sequential(*encoder), nn.Sequential(*decoder), embedding_dim)
        self.apply(glorot_)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU


class UpConv2d(nn.Conv2d):
    """Enlarge images to a size by repeating pixels, then convolve them with stride 1.

    Where the size is twice that of the images, both are one convolution of the small images: a
    pixel of the result sees few different ones, whose weights are added up. That is the same but
    for rounding, with 9 in place of 25 multiplications for a 5x5 kernel.

    Args:
        in_channels: Channels of the images.
        out_channels: Channels of the result.
        kernel: Side of the kernel, an odd number.
        size: Height and width of the result.

    Example:
        >>> import torch
        >>> UpConv2d(4, 2, kernel=5, size=(7, 7))(torch.zeros(1, 4, 3, 3)).shape
        torch.Size([1, 2, 7, 7])
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, size: tuple[int, int]
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        self.size = size
        # Tap t of pixel 2 i + a of the result falls on pixel i + (a + t - kernel // 2) // 2.
        reach = (kernel + 1) // 4
        taps = torch.zeros(2, 2 * reach + 1, kernel)
        for a in range(2):
            for t in range(kernel):
                taps[a, (a + t - kernel // 2) // 2 + reach, t] = 1
        self.register_buffer("taps", taps, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, out_channels, *size)`` of ``(B, in_channels, H, W)``."""
        if self.size != (2 * x.shape[2], 2 * x.shape[3]):
            return super().forward(interpolate(x, size=self.size, mode="nearest"))
        summed = torch.einsum("aut,bvs,oits->oabiuv", self.taps, self.taps, self.weight)
        weight = summed.flatten(0, 2)  # (4 out_channels, in_channels, taps, taps)
        assert self.bias is not None
        bias = self.bias.repeat_interleave(4)
        return pixel_shuffle(conv2d(x, weight, bias, padding=weight.shape[-1] // 2), 2)


class Classifier(nn.Sequential):
    """Build the CNN of module B of IDCEC, whose figure 4 is not in the text.

    Two 3x3 convolutions (32 and 64 filters) with ReLU and 2x2 max pooling, a hidden layer of 128,
    dropout 0.5 before the last linear layer, as the paper says.

    Args:
        input_shape: ``(C, H, W)``, sides of at least 8.
        n_clusters: K.
        filters: Filters of the two convolutions.
        hidden: Width of the hidden layer.
        dropout: Share of it that is dropped in training.

    Raises:
        UserError: If samples are vectors, a side is shorter than 8, or one that is halved for each
            convolution vanishes.

    Example:
        >>> import torch
        >>> Classifier((1, 16, 16), n_clusters=10)(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        n_clusters: int,
        filters: Sequence[int] = (32, 64),
        hidden: int = 128,
        dropout: float = 0.5,
    ) -> None:
        channels, height, width = image_shape(input_shape)
        if min(height, width) >> len(filters) == 0:
            got = f"{height}x{width} and filters {list(filters)}"
            remedy = "set fewer model.classifier.filters"
            raise problem("images to halve for each filter", got, remedy)
        layers: list[nn.Module] = []
        for before, after in zip((channels, *filters), filters, strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        shrunk = (height >> len(filters)) * (width >> len(filters))
        super().__init__(
            *layers,
            nn.Flatten(),
            nn.Linear(filters[-1] * shrunk, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, n_clusters),
        )
        self.apply(glorot_)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def hidden(self, x: Tensor) -> Tensor:
        """Return what the last layer sees of images ``(B, C, H, W)``, shape ``(B, hidden)``."""
        for layer in list(self)[:-1]:
            x = layer(x)
        return x
