"""Autoencoders: ``encode``, ``decode``, and both at once."""

from clusterlab.networks.autoencoder import Autoencoder
from clusterlab.networks.conv import ConvAutoencoder
from clusterlab.networks.mlp import MLPAutoencoder, Pixels

__all__ = ["Autoencoder", "ConvAutoencoder", "MLPAutoencoder", "Pixels"]
