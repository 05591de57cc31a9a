"""What every model asks of a network."""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss


class Autoencoder(nn.Module):
    """Join an encoder and a decoder.

    Autocast ends here: under bf16 the layers compute in bf16, and what comes out is ``float32``, so
    that no loss subtracts numbers of 8 bits.

    Attributes:
        images_only: Whether samples must have height and width; a subclass's to say.

    Args:
        encoder: Maps ``x`` of shape ``(B, *input)`` to ``z`` of shape ``(B, d)``.
        decoder: Maps ``z`` back to the shape of ``x``.
        embedding_dim: d.
        scale: Factor between the samples and what the network sees, which is ``scale (x - shift)``.
        shift: What the network sees as zero.
    """

    images_only = False

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        embedding_dim: int,
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.embedding_dim = embedding_dim
        self.scale = scale
        self.shift = shift

    def encode(self, x: Tensor) -> Tensor:
        """Return the embedding ``z``, shape ``(B, d)``."""
        return _widened(self.encoder(self.seen(x)))

    def decode(self, z: Tensor, frozen: bool = False) -> Tensor:
        """Return the reconstruction ``x_hat``, shaped like the input.

        Args:
            z: Embeddings, shape ``(B, d)``.
            frozen: Whether the decoder's weights get no gradient, only ``z``.
        """
        if frozen:
            weights = {name: w.detach() for name, w in self.decoder.named_parameters()}
            x_hat = _widened(functional_call(self.decoder, weights, z))
        else:
            x_hat = _widened(self.decoder(z))
        x_hat = x_hat if self.scale == 1 else x_hat / self.scale
        return x_hat if self.shift == 0 else x_hat + self.shift

    def seen(self, x: Tensor) -> Tensor:
        """Return samples in the network's own scale, shaped like the input."""
        x = x if self.shift == 0 else x - self.shift
        return x if self.scale == 1 else self.scale * x

    def reconstruction_loss(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Return the mean squared error over samples and values, in the network's own scale."""
        return self.scale**2 * mse_loss(x_hat, x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(z, x_hat)``."""
        z = self.encode(x)
        return z, self.decode(z)


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def glorot_(module: nn.Module) -> None:
    """Draw weights Glorot-uniform and set biases to zero, Keras' defaults; use with ``apply``."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def fan_in_(module: nn.Module) -> None:
    """Draw a linear layer's weights uniformly within 1 / sqrt(inputs), biases zero; for ``apply``.

    Keras' ``VarianceScaling(1 / 3, "fan_in", "uniform")``.
    """
    if isinstance(module, nn.Linear):
        nn.init.uniform_(module.weight, -(module.in_features**-0.5), module.in_features**-0.5)
        nn.init.zeros_(module.bias)
