"""Choose reliable samples and their pseudo-labels, and stop when a classifier's labels settle."""

import logging
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from clusterlab.assignment import label_change
from clusterlab.centers import kmeans, reliable_samples, renumber
from clusterlab.data.samples import Samples
from clusterlab.errors import problem
from clusterlab.metrics import cluster_sizes, contingency, match, score
from clusterlab.models.idcec import IDCEC

log = logging.getLogger(__name__)


class SelfTraining(Callback):
    """Run module B of IDCEC (section 3.3): what is learned, from which samples, and how long.

    At the start of the phase, k-means on the final embedding gives pseudo-labels, numbered as the
    trained centers are, and samples near their center sample are reliable, eq. (16) and (17). The
    phase's batches are of those alone. After each epoch the classifier labels all samples, reliable
    or not; training stops once it uses every cluster and its labels settle. In a single epoch few
    labels change by chance, long before it knows the labels that it is taught. Labels of ground
    truth are read for scores alone.

    Args:
        threshold: lambda, the least cosine similarity of a reliable sample.
        tolerance: delta, the share of labels changed in an epoch below which they are settled; 0
            never stops.
        patience: Epochs in a row in which they must be.

    Raises:
        UserError: If one of them is out of range.
    """

    def __init__(self, threshold: float, tolerance: float, patience: int) -> None:
        if not -2 <= threshold <= 2:
            raise problem(
                "a cosine from -1 (all samples) to above 1 (center samples alone)",
                threshold,
                "set phases.retrain.threshold",
            )
        if not 0 <= tolerance < 1:
            raise problem("a tolerance in [0, 1)", tolerance, "set phases.retrain.tolerance")
        if patience < 1:
            raise problem("a patience of 1 epoch or more", patience, "set phases.retrain.patience")
        self.threshold = threshold
        self.tolerance = tolerance
        self.patience = patience
        self.pseudo_labels: Tensor | None = None  # (N,)
        self.reliable: Tensor | None = None  # (N,), bool
        self.labels: Tensor | None = None  # (N,), the classifier's
        self.change: float | None = None
        self.learned: float | None = None  # share of the reliable samples labelled as taught
        self.calm = 0  # epochs in a row in which fewer labels changed than the tolerance
        self.converged = False
        self.chosen: dict[str, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the reliable samples, unless a checkpoint brought them."""
        assert isinstance(pl_module, IDCEC)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self.pseudo_labels is None:
            z = pl_module.embed_dataset()  # (N, d)
            found = None
            if trainer.is_global_zero:
                trained = pl_module.centers.detach()
                centers, labels = kmeans(z, len(trained), pl_module.seed, pl_module.n_init)
                centers, labels = renumber(centers, labels, trained)
                found = labels, reliable_samples(z, labels, centers, self.threshold)
            self.pseudo_labels, self.reliable = trainer.strategy.broadcast(found)  # type: ignore[misc]
            q = pl_module.assign_all(z).cpu()  # (N, K), of module A
            self.chosen = self._describe(q, data.samples)
        assert self.pseudo_labels is not None
        assert self.reliable is not None
        pl_module.pseudo_labels = self.pseudo_labels = self.pseudo_labels.to(pl_module.device)
        data.subset = self.reliable.cpu().nonzero().flatten()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Label all samples, and decide whether to stop."""
        assert isinstance(pl_module, IDCEC)
        q = pl_module.over_dataset(pl_module.classify, pl_module.classifier)  # (N, K)
        previous, self.labels = self.labels, q.argmax(1).cpu()
        assert self.pseudo_labels is not None
        assert self.reliable is not None
        taught = self.pseudo_labels.cpu()[self.reliable.cpu()]
        self.learned = 1 - label_change(taught, self.labels[self.reliable.cpu()])
        logs = {"learned": self.learned}
        y = trainer.datamodule.samples.y  # type: ignore[attr-defined]
        if y is not None:
            logs |= score(self.labels, y, q.shape[1])
        if previous is not None:
            logs["label_change"] = self.change = label_change(previous, self.labels)
        pl_module.log_now({f"cluster/{name}": value for name, value in logs.items()})
        # An untrained classifier puts all samples into one cluster, and changes no label either.
        complete = bool(cluster_sizes(self.labels, q.shape[1]).all())
        settled = complete and self.change is not None and self.change < self.tolerance
        self.calm = self.calm + 1 if settled else 0
        decided = self.calm >= self.patience
        self.converged = trainer.strategy.reduce_boolean_decision(decided, all=True)
        trainer.should_stop = trainer.should_stop or self.converged

    def record(self) -> dict[str, Any]:
        """Return what the phase's record says of the choice and of the end."""
        settled = self.converged if self.tolerance > 0 else None  # None: nobody asked
        record = {"label_change": self.change, "learned": self.learned, "settled": settled}
        record |= self.chosen
        return {**record, "stop_reason": "tolerance"} if self.converged else record

    def _describe(self, q: Tensor, samples: Samples) -> dict[str, Any]:
        """Count the reliable samples and score them, and say where the threshold is of no use."""
        assert self.pseudo_labels is not None
        assert self.reliable is not None
        labels, reliable = self.pseudo_labels.cpu(), self.reliable.cpu()
        n_clusters = q.shape[1]
        sizes = cluster_sizes(labels[reliable], n_clusters)
        n_reliable = int(reliable.sum())
        log.info("%d of %d samples are reliable.", n_reliable, len(labels))
        trouble = []
        if none := [str(k) for k, size in enumerate(sizes.tolist()) if size == 0]:
            trouble.append(f"k-means finds nothing in the embedding for cluster {', '.join(none)}")
        if alone := [str(k) for k, size in enumerate(sizes.tolist()) if size == 1]:
            trouble.append(f"only the center sample is reliable in cluster {', '.join(alone)}")
        if n_reliable == len(labels):
            trouble.append("all samples are reliable: the threshold leaves none out")
        for line in trouble:
            log.warning("threshold %g: %s", self.threshold, line)
        chosen: dict[str, Any] = {
            "n_reliable": n_reliable,
            "reliable_sizes": sizes.tolist(),
            "trouble": trouble,
        }
        if samples.y is None:
            return chosen
        y = samples.y
        chosen["metrics_at_start"] = score(q.argmax(1), y, n_clusters)
        chosen["metrics_of_pseudo_labels"] = score(labels, y, n_clusters)
        matched = match(contingency(y, labels, int(y.max()) + 1, n_clusters))
        right = (matched[labels] == y).double()
        for name, mask in (("reliable", reliable), ("rejected", ~reliable)):
            chosen[f"accuracy_{name}"] = float(right[mask].mean()) if mask.any() else None
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed phase needs; the choice is not made twice."""
        return {
            "pseudo_labels": self.pseudo_labels,
            "reliable": self.reliable,
            "labels": self.labels,
            "change": self.change,
            "learned": self.learned,
            "calm": self.calm,
            "chosen": self.chosen,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint remembers."""
        for name, value in state_dict.items():
            setattr(self, name, value)
