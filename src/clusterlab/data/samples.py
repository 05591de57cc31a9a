"""The data set as the rest of the code sees it: one tensor, and labels apart from it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


def digest(x: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes, the same as ``sha256(array.tobytes())`` in NumPy.

    Example:
        >>> digest(torch.tensor([1, 2], dtype=torch.uint8))[:8]
        'a12871fe'
    """
    return hashlib.sha256(x.contiguous().numpy().data).hexdigest()


@dataclass(frozen=True)
class Samples:
    """Hold a data set in memory.

    Args:
        name: What the records call it.
        x: Images, shape ``(N, C, H, W)``, ``uint8`` in 0..255 or ``float32`` in [0, 1]; or vectors,
            shape ``(N, d)``, ``float32`` of any size, or ``uint8``, which stand for [0, 1] too.
        y: Ground truth, shape ``(N,)``, ``int64`` in 0..k-1; ``None`` without labels. Scores read
            it, training never does.
        files: One file name a sample, for data that came from files.
        class_names: One name a class, where the data set has them.
        sha256: Digest of ``x`` as prepared; computed from ``x`` when left empty.
        known: Labels that training may read, shape ``(N,)``, -1 where unknown; ``None`` for
            methods that read none.
        skipped: Files that were passed over because they are broken.
    """

    name: str
    x: Tensor
    y: Tensor | None = None
    files: tuple[str, ...] | None = None
    class_names: tuple[str, ...] | None = None
    sha256: str = field(default="")
    known: Tensor | None = None
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Fill in the digest."""
        if not self.sha256:
            object.__setattr__(self, "sha256", digest(self.x))

    def __len__(self) -> int:
        """Return N."""
        return len(self.x)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of one sample, ``(C, H, W)`` or ``(d,)``."""
        return tuple(self.x.shape[1:])

    @property
    def are_images(self) -> bool:
        """Whether the samples have height and width."""
        return self.x.ndim == 4

    def unit_scale(self) -> float:
        """Return the factor that brings the mean square of a value to 1; 1 if all are zero.

        Example:
            >>> Samples("two", torch.tensor([[[[0.5]]], [[[0.5]]]])).unit_scale()
            2.0
        """
        square = self._mean(Tensor.square)
        return square**-0.5 if square else 1.0

    def mean_and_deviation(self) -> tuple[float, float]:
        """Return both over all values of all samples; a deviation of 0 is told as 1.

        Example:
            >>> Samples("two", torch.tensor([[101.0, 101.0], [99.0, 99.0]])).mean_and_deviation()
            (100.0, 1.0)
        """
        mean = self._mean(lambda x: x)
        return mean, self._mean(lambda x: (x - mean).square()) ** 0.5 or 1.0

    def _mean(self, function: Callable[[Tensor], Tensor]) -> float:
        # A thousand samples at a time: the whole set as numbers takes four times its memory.
        starts = range(0, len(self), 1000)
        parts = (function(as_float(self.x[i : i + 1000]).double()) for i in starts)
        return sum(float(part.sum()) for part in parts) / self.x.numel()

    @property
    def n_classes(self) -> int | None:
        """Return the number of classes, ``None`` without labels."""
        return None if self.y is None else int(self.y.max()) + 1


def as_float(x: Tensor) -> Tensor:
    """Bring stored samples to ``float32``; ``uint8`` is divided by 255.

    Example:
        >>> as_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([0.0000, 0.2000, 1.0000])
    """
    return x.to(torch.float32).div_(255) if x.dtype == torch.uint8 else x
