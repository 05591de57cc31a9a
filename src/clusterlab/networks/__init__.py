"""Autoencoders: ``encode``, ``decode``, and both at once."""

from clusterlab.networks.autoencoder import Autoencoder
from clusterlab.networks.conv import ConvAutoencoder

__all__ = ["Autoencoder", "ConvAutoencoder"]
