"""Autoencoders: ``encode``, ``decode``, and both at once."""

from clusterlab.networks.autoencoder import Autoencoder
from clusterlab.networks.conv import ConvAutoencoder
from clusterlab.networks.mlp import MLPAutoencoder, Pixels
from clusterlab.networks.pooled import Classifier, PooledAutoencoder
from clusterlab.networks.residual import ResidualAutoencoder

__all__ = [
    "Autoencoder",
    "Classifier",
    "ConvAutoencoder",
    "MLPAutoencoder",
    "Pixels",
    "PooledAutoencoder",
    "ResidualAutoencoder",
]
