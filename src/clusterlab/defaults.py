"""Settings that are left to the data: what ``auto`` stands for."""

import logging
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from clusterlab.data.samples import Samples
from clusterlab.files import config_folder

log = logging.getLogger(__name__)

FEW_IMAGES = 20_000  # with fewer, images that are changed a little in every epoch stand for more


def batch_size_for(n_samples: int) -> int:
    """Return the power of two next below an eighth of the samples, from 16 to 256.

    256 is what the papers take for 9,298 to 70,000 images.

    Example:
        >>> [batch_size_for(n) for n in (10, 300, 1_797, 70_000)]
        [10, 32, 128, 256]
    """
    size = 1 << (max(n_samples, 8) // 8).bit_length() - 1
    return min(n_samples, max(16, min(size, 256)))


def epochs_for(n_batches: int) -> int:
    """Return 200 epochs as DCEC has, but at least 2,000 and at most 50,000 steps.

    Args:
        n_batches: Steps an epoch.

    Example:
        >>> [epochs_for(n) for n in (5, 37, 274, 3907)]
        [400, 200, 182, 12]
    """
    return max(1, min(max(200, -(-2_000 // n_batches)), 50_000 // n_batches))


def update_interval_for(n_batches: int) -> int:
    """Return T of half an epoch, but at least 30 steps.

    Of the published runs, DCEC refreshes MNIST every half epoch (140 of 274 steps), and DEC-DA
    USPS every 30 steps.

    Args:
        n_batches: Steps an epoch.

    Example:
        >>> [update_interval_for(n) for n in (5, 37, 274, 3907)]
        [30, 30, 137, 1954]
    """
    return max(30, -(-n_batches // 2))


def fit_to_data(cfg: DictConfig, samples: Samples) -> None:
    """Replace every ``auto`` of a run's config by what fits its data, and say so.

    Args:
        cfg: The run's config; ``data.batch_size``, and of each phase ``max_epochs``,
            ``update_interval`` and ``augment``, are changed in place.
        samples: The data.
    """
    chosen: dict[str, Any] = {}
    if cfg.data.batch_size == "auto":
        chosen["data.batch_size"] = cfg.data.batch_size = batch_size_for(len(samples))
    size = cfg.data.batch_size
    if not isinstance(size, int) or size < 1:
        return  # refused where batches are made
    n_batches = -(-len(samples) // size)
    for name, phase in cfg.phases.items():
        for key, rule in (("max_epochs", epochs_for), ("update_interval", update_interval_for)):
            if phase and phase.get(key) == "auto":
                chosen[f"phases.{name}.{key}"] = phase[key] = rule(n_batches)
        if phase and "augment" not in phase and augmented(cfg.data, samples):
            with open_dict(phase):
                phase.augment = OmegaConf.load(config_folder() / "augment" / "affine.yaml")
            chosen[f"augment@phases.{name}.augment"] = "affine"
    if chosen:
        told = " ".join(f"{key}={value}" for key, value in chosen.items())
        log.info("Chosen for %s samples: %s", f"{len(samples):,}", told)


def standardized(data: DictConfig, samples: Samples) -> bool:
    """Tell whether ``data.standardize`` asks for it: ``auto`` of vectors, ``true`` of all."""
    asked = data.get("standardize", False)
    return not samples.are_images if asked == "auto" else bool(asked)


def augmented(data: DictConfig, samples: Samples) -> bool:
    """Tell whether ``data.augment=auto`` asks for augmentation: of images, if they are few."""
    return bool(data.get("augment") == "auto") and samples.are_images and len(samples) < FEW_IMAGES
