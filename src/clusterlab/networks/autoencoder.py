"""What every model asks of a network."""

from torch import Tensor, nn


class Autoencoder(nn.Module):
    """Join an encoder and a decoder.

    Args:
        encoder: Maps ``x`` of shape ``(B, *input)`` to ``z`` of shape ``(B, d)``.
        decoder: Maps ``z`` back to the shape of ``x``.
        embedding_dim: d.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, embedding_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.embedding_dim = embedding_dim

    def encode(self, x: Tensor) -> Tensor:
        """Return the embedding ``z``, shape ``(B, d)``."""
        z: Tensor = self.encoder(x)
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Return the reconstruction ``x_hat``, shaped like the input."""
        x_hat: Tensor = self.decoder(z)
        return x_hat

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(z, x_hat)``."""
        z = self.encode(x)
        return z, self.decode(z)


def glorot_(module: nn.Module) -> None:
    """Draw weights Glorot-uniform and set biases to zero, Keras' defaults; use with ``apply``."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
