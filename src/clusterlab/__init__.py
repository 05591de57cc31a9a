"""Deep clustering papers on one PyTorch Lightning and Hydra spine."""

__version__ = "0.1.0"
