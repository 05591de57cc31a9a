"""Label new samples with a finished run: no training data needed, no Hydra."""

import csv
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from clusterlab.checks import build
from clusterlab.data.datamodule import in_order
from clusterlab.data.images import IMAGE_SUFFIXES, decode, folder
from clusterlab.data.samples import Samples
from clusterlab.data.sources import as_samples, npz
from clusterlab.distributed import full_pass
from clusterlab.errors import asked_for_help, exit_on_error, problem
from clusterlab.files import read_json, write_atomically
from clusterlab.folders import PhaseFolder
from clusterlab.models.base import DeepClustering

USAGE = "predict.py run=<run folder> input=<npz, image folder or image> [output=predictions.csv]"


class Predictor:
    """Assign samples to the clusters of a finished run.

    Args:
        model: The trained model.
        input_shape: ``(C, H, W)`` or ``(d,)`` it was trained on.
        class_names: What clusters are called, where they stand for classes of known labels.

    Example:
        >>> predictor = load("runs/dcec_digits/seed=0")    # doctest: +SKIP
        >>> labels, q = predictor.predict(images)          # doctest: +SKIP
    """

    def __init__(
        self,
        model: DeepClustering,
        input_shape: tuple[int, ...],
        class_names: Sequence[str] = (),
    ) -> None:
        self.model = model.eval()
        self.input_shape = input_shape
        self.class_names = class_names

    def predict(self, x: NDArray[Any] | Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return labels and soft assignments.

        Args:
            x: Images, shape ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)``, ``uint8`` or
                floating point in [0, 1]; or vectors, shape ``(N, d)``.

        Returns:
            Labels, shape ``(N,)``, and q, shape ``(N, K)``, whose argmax they are.

        Raises:
            UserError: If the samples are of another size, or no samples.
        """
        q = self._map(self.model, x)
        return q.argmax(1).numpy(), q.numpy()

    def embed(self, x: NDArray[Any] | Tensor) -> NDArray[np.float32]:
        """Return embeddings, shape ``(N, d)``, of samples as ``predict`` takes them."""
        return self._map(self.model.network.encode, x).numpy()

    def _map(self, function: Callable[[Tensor], Tensor], x: NDArray[Any] | Tensor) -> Tensor:
        samples = torch.from_numpy(as_samples(np.asarray(x), "the samples"))
        if tuple(samples.shape[1:]) != self.input_shape:
            raise problem(
                _size(self.input_shape),
                _size(samples.shape[1:]),
                "bring them to what the run was trained on",
            )
        return full_pass(function, self.model, in_order(samples), torch.device("cpu"))

    def read(self, path: Path) -> Samples:
        """Read an ``.npz`` file, a folder of images or one image, as ``predict`` takes them.

        Image files are brought to the size and the channels of the run.

        Raises:
            UserError: If it is none of these.
        """
        if len(self.input_shape) == 3:
            channels, *size = self.input_shape
            if path.is_dir():
                return folder(str(path), size=size, channels=channels)
            if path.suffix.lower() in IMAGE_SUFFIXES:
                image = decode(path, channels, (size[0], size[1]))
                return Samples(path.name, torch.from_numpy(image.copy())[None], files=(path.name,))
        return npz(str(path))


def load(run: str | Path) -> Predictor:
    """Load a finished run for prediction.

    Args:
        run: The run folder; of it, ``config.yaml``, the last phase's weights and, if it is there,
            ``result.json`` are read.

    Raises:
        UserError: If the folder is not a run, the run is not finished, or its method has no rule
            for new samples.
    """
    model, cfg = trained(run)
    if not model.inductive:
        raise problem(
            "a method that can label new samples",
            f"a run of {cfg.model_name}",
            f"take the labels of its own samples from {Path(run) / 'assignments.npz'}",
        )
    result = Path(run) / "result.json"
    record = read_json(result) if result.exists() else {}
    return Predictor(model, tuple(cfg.network.input_shape), record.get("class_names", ()))


def trained(run: str | Path) -> tuple[DeepClustering, DictConfig]:
    """Return a finished run's model as its last phase left it, and its config.

    Raises:
        UserError: If the folder is not a run, or the run is not finished.
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise problem("a run folder", f"no config.yaml in {run}", "give the folder of a run")
    cfg = OmegaConf.load(run / "config.yaml")
    assert isinstance(cfg, DictConfig)
    phase = list(cfg.phases)[-1]
    last = PhaseFolder(run / str(phase))
    if not last.finished:
        raise problem(f"a finished run in {run}", f"no finished {phase}", "train it to its end")
    model: DeepClustering = build(cfg.model, network=build(cfg.network))
    last.load(model, str(phase))
    return model, cfg


def write_predictions(
    path: Path,
    labels: NDArray[np.int64],
    q: NDArray[np.float32],
    files: tuple[str, ...] | None,
    class_names: Sequence[str] = (),
) -> None:
    """Write one row a sample: its index, its file if it came from one, label and q.

    Where clusters have the names of classes, also that, empty for a cluster that stands for none.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    file, name = ["file"] if files else [], ["class"] if class_names else []
    writer.writerow(["index", *file, "label", *name, *(f"q{j}" for j in range(q.shape[1]))])
    for i, (label, row) in enumerate(zip(labels.tolist(), q.tolist(), strict=True)):
        file = [files[i]] if files else []
        name = [*class_names[label : label + 1]] or [""] if class_names else []
        writer.writerow([i, *file, label, *name, *(f"{value:.6g}" for value in row)])
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))  # names as they are


def _size(shape: tuple[int, ...] | torch.Size) -> str:
    if len(shape) == 1:
        return f"vectors of {shape[0]} numbers"
    channels, height, width = shape
    return f"images of {height}x{width} pixels, {channels} channel{'s' if channels > 1 else ''}"


def main() -> None:
    """Predict from the command line: ``key=value`` arguments as in training."""
    if asked_for_help(USAGE):
        return
    with exit_on_error(OSError):
        arguments = dict(text.partition("=")[::2] for text in sys.argv[1:])
        if not {"run", "input"} <= arguments.keys() <= {"run", "input", "output"}:
            raise problem(USAGE, " ".join(sys.argv[1:]) or "nothing", "give both")
        predictor = load(arguments["run"])
        samples = predictor.read(Path(arguments["input"]))
        labels, q = predictor.predict(samples.x)
        output = Path(arguments.get("output", "predictions.csv"))
        write_predictions(output, labels, q, samples.files, predictor.class_names)
    sizes = np.bincount(labels, minlength=q.shape[1])
    print(f"{len(labels)} samples, cluster sizes {' '.join(map(str, sizes))}, written to {output}")


if __name__ == "__main__":
    main()
