"""Deep clustering papers on one PyTorch Lightning and Hydra spine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clusterlab.estimator import DeepClusterer as DeepClusterer

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the estimator where it is asked for: it brings PyTorch, which takes seconds."""
    if name != "DeepClusterer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from clusterlab.estimator import DeepClusterer

    return DeepClusterer
