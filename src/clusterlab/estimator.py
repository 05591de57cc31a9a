"""A scikit-learn estimator: the command line's runs, from Python and on arrays."""

import numbers
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from omegaconf import DictConfig
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from clusterlab.cli import settle
from clusterlab.data.known import given
from clusterlab.data.samples import Samples
from clusterlab.data.sources import array
from clusterlab.errors import problem
from clusterlab.isolation import composed, isolated, messages
from clusterlab.predict import Predictor, trained
from clusterlab.results import open_clusters
from clusterlab.training import run

# Where the config has what an argument says.
SETTINGS = {
    "n_clusters": "n_clusters",
    "batch_size": "data.batch_size",
    "pretrain_epochs": "phases.pretrain.max_epochs",
    "max_steps": "phases.finetune.max_steps",
    "update_interval": "phases.finetune.update_interval",
    "tolerance": "phases.finetune.tolerance",
}


class DeepClusterer(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]
    TransformerMixin,  # type: ignore[misc]
    ClusterMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """Cluster an array with any method of ``conf/model``, as ``train.py`` does it.

    Samples ``X`` are images, shape ``(n, h, w)``, ``(n, h, w, c)`` or ``(n, c, h, w)`` with c 1 or
    3, ``uint8`` or floating point in [0, 1]; or vectors, shape ``(n, d)``. All is computed in
    ``float32``, ``float64`` input too. Where an argument is ``None``, the method's config decides,
    or what fits the number of samples (``clusterlab.defaults``).

    A method that learns from some labels, such as ``sdcec``, takes them as ``y``: the number of a
    sample's class, 0 to K - 1, or -1 where it is unknown. Cluster j then is class j. Of the other
    methods ``y`` is never read.

    Args:
        model: A name in ``conf/model``.
        n_clusters: K.
        random_state: A whole number is the ``seed`` of the command line.
        batch_size: Samples a step.
        pretrain_epochs: Epochs of the pretrain phase.
        max_steps: Most steps of the finetune phase.
        update_interval: T, steps between two refreshes of the target distribution.
        tolerance: Share of changed labels that ends the finetune phase.
        overrides: Anything else in the config, as on the command line: ``["loss.gamma=0.5"]``.
        output_dir: Where to keep the run, in a folder named after what was asked. The same fit
            then resumes it, or reads its result. ``None`` keeps no files.
        verbose: Whether to show progress and messages.

    Attributes:
        labels_: Cluster of each sample, shape ``(n,)``, ``int64``.
        soft_labels_: q, shape ``(n, K)``, ``float32``; ``labels_`` are its argmax.
        embedding_: z, shape ``(n, d)``, ``float32``.
        cluster_centers_: Centers in the embedding, shape ``(K, d)``, ``float32``.
        n_iter_: Steps of the finetune phase; 0 for a method without one.
        stop_reason_: Why that phase stopped, or else the last one.
        n_features_in_: Numbers of a sample, pixels and channels counted.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> clusterer = DeepClusterer("kmeans", n_clusters=10, random_state=0)
        >>> clusterer.fit(load_digits().images / 16).cluster_centers_.shape
        (10, 64)
    """

    def __init__(
        self,
        model: str = "dcec",
        n_clusters: int = 8,
        *,
        random_state: int | np.random.RandomState | None = None,
        batch_size: int | None = None,
        pretrain_epochs: int | None = None,
        max_steps: int | None = None,
        update_interval: int | None = None,
        tolerance: float | None = None,
        overrides: Sequence[str] = (),
        output_dir: str | Path | None = None,
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.n_clusters = n_clusters
        self.random_state = random_state
        self.batch_size = batch_size
        self.pretrain_epochs = pretrain_epochs
        self.max_steps = max_steps
        self.update_interval = update_interval
        self.tolerance = tolerance
        self.overrides = overrides
        self.output_dir = output_dir
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Train, and label the samples, from the known labels ``y`` if the method takes such.

        Raises:
            UserError: If the samples or the settings are not what they must be; a ``ValueError``.
        """
        x = self._checked(X, reset=True)
        seed = self.random_state
        if not isinstance(seed, numbers.Integral):  # a generator moves on; the rest leaves it alone
            seed = check_random_state(seed).randint(2**31 - 1)
        with (
            tempfile.TemporaryDirectory(prefix="clusterlab-") as folder,
            messages(self.verbose),
            isolated(),
        ):
            cfg = self._config(len(x), int(seed), folder)
            samples = self._told(array(x, cfg.data.name), y, cfg)
            phases = run(cfg, samples)["phases"]
            model, made = trained(cfg.run_dir)
            with open_clusters(Path(cfg.run_dir)) as file:
                self.labels_, self.soft_labels_ = file["label"], file["q"]
                self.embedding_ = file["z"]
        self.cluster_centers_ = model.centers.detach().numpy().copy()
        phase = phases.get("finetune", phases[list(phases)[-1]])
        self.n_iter_ = phase["steps"] if "finetune" in phases else 0
        self.stop_reason_ = phase["stop_reason"]
        self._predictor = Predictor(model, tuple(made.network.input_shape))
        return self

    def fit_predict(self, X: ArrayLike, y: ArrayLike | None = None) -> NDArray[np.int64]:
        """Return the cluster of each sample, shape ``(n,)``; takes and raises what ``fit`` does."""
        labels: NDArray[np.int64] = self.fit(X, y).labels_
        return labels

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Return the cluster of each sample, shape ``(n,)``.

        Raises:
            UserError: If the method has no rule for new samples.
        """
        predictor, x = self._for_new(X)
        return predictor.predict(x)[0]

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the soft assignment of each sample, shape ``(n, K)``; raises as ``predict``."""
        predictor, x = self._for_new(X)
        return predictor.predict(x)[1]

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the embedding of each sample, shape ``(n, d)``; raises as ``predict``."""
        predictor, x = self._for_new(X)
        return predictor.embed(x)

    @property
    def _n_features_out(self) -> int:
        return int(self.embedding_.shape[1])

    def __sklearn_tags__(self) -> Any:
        """Say what scikit-learn's checks may expect."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def _checked(self, X: ArrayLike, reset: bool) -> NDArray[Any]:
        # Training takes no read-only arrays; two samples are the fewest that make clusters.
        least = 2 if reset else 1
        x: NDArray[Any] = check_array(
            X, allow_nd=True, force_writeable=True, ensure_min_samples=least, estimator=self
        )
        # Images may come in other layouts than they were fitted in, but not with other sizes.
        rows = X if x.ndim == 2 else x.reshape(len(x), -1)
        validate_data(self, rows, reset=reset, skip_check_array=True)
        return x

    def _for_new(self, X: ArrayLike) -> tuple[Predictor, NDArray[Any]]:
        check_is_fitted(self)
        x = self._checked(X, reset=False)
        if not self._predictor.model.inductive:
            remedy = "take labels_ and embedding_ of the samples it was fitted to"
            raise problem("a method that can label new samples", f"model={self.model}", remedy)
        return self._predictor, x

    def _told(self, samples: Samples, y: ArrayLike | None, cfg: DictConfig) -> Samples:
        if "labelled" not in cfg.data:
            return samples
        if y is not None:
            for override in self.overrides:
                if override.lstrip("+").startswith("data.labelled="):
                    got = f"y and {override}"
                    raise problem("known labels from one place", got, "leave one of them out")
            cfg.data.labelled = None  # neither drawn nor from a file
            return replace(samples, known=given(y, len(samples), cfg.n_clusters))
        if cfg.data.labelled and not isinstance(cfg.data.labelled, str):
            expected = f"y for model={self.model}, the class of each sample or -1 where unknown"
            raise problem(expected, "none", "pass it to fit, or set overrides=['data.labelled=0']")
        return samples

    def _config(self, n_samples: int, seed: int, folder: str) -> DictConfig:
        if isinstance(self.overrides, str):
            remedy = f"set overrides=['{self.overrides}']"
            raise problem("a list of overrides", "a string", remedy)
        asked = {path: getattr(self, name) for name, path in SETTINGS.items()}
        overrides = [
            *("data=array", f"model={self.model}", f"seed={seed}"),
            *("figures=false", f"progress={self.verbose}"),
            *(f"{path}={value}" for path, value in asked.items() if value is not None),
            *self.overrides,
        ]
        cfg = composed(overrides)
        if self.batch_size is None and cfg.data.batch_size != "auto":  # a method's own
            cfg.data.batch_size = min(cfg.data.batch_size, n_samples)
        cfg.output_dir = str(self.output_dir or folder)
        settle(cfg, overrides)
        return cfg
