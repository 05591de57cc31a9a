"""IDCEC: DCEC on a pooled autoencoder, then a classifier trained on the samples it is sure of."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clusterlab.assignment import soft_assignment
from clusterlab.data.datamodule import Batch, in_order
from clusterlab.data.samples import Samples
from clusterlab.distributed import full_pass
from clusterlab.losses import Divergence, squared_weights
from clusterlab.models.base import DeepClustering
from clusterlab.networks import Autoencoder, Classifier


class IDCEC(DeepClustering):
    """Improved deep convolutional embedded clustering with re-selectable sample training.

    Lu, Chen, Wei, Ma, Jiang, Wang; received 2021, published 2022. No public code exists.

    Pretrain:  L = L_r + beta L_w                 eq. (2), (6)
    Finetune:  L = L_r + alpha L_c + beta L_w     eq. (1), (7)
    Retrain:   cross-entropy of a fresh classifier on reliable samples, eq. (16), (17)

    Differs from the paper: L_r is the mean over images and pixels, without the 1/2 (alpha = 0.1 is
    DCEC's, whose code averages); training stops where fewer than the tolerance of the labels
    changed (Algorithm 1, line 8 stops where some did); labels before module B are argmax q.
    The paper's images are augmented; P comes from clean ones, and what is reconstructed is the
    augmented image without the noise.

    On USPS module A goes far beyond the paper's numbers with its settings, which leaves little to
    module B: trained embeddings of a cluster all point the same way, so that lambda = 0.65 rejects
    at most 14 of 9,298 samples. The classifier mostly ends a little above module A, if it is
    trained until it knows the labels it is taught; stopped at the first quiet epoch, below.

    Args:
        network: The autoencoder of module A.
        classifier: The CNN of module B, from images to K logits.
        n_clusters: K.
        divergence: Compares q with p, both ``(B, K)``: ``divergence(q, p) -> scalar``.
        alpha: Weight of L_c.
        beta: Weight of L_w.
        noise: Standard deviation of the Gaussian noise on the input, pixels being in [0, 1].
        seed: Seed of the training and of k-means.
        n_init: Starts of k-means.

    Attributes:
        pseudo_labels: Labels that the classifier learns, shape ``(N,)``; a callback's to set.
    """

    images_only = True

    def __init__(
        self,
        network: Autoencoder,
        classifier: Classifier,
        n_clusters: int,
        divergence: Divergence,
        alpha: float,
        beta: float,
        noise: float,
        seed: int,
        n_init: int = 20,
    ) -> None:
        super().__init__(network, n_clusters, seed, n_init)
        self.classifier = classifier
        self.divergence = divergence
        self.alpha = alpha
        self.beta = beta
        self.noise = noise
        self.pseudo_labels: Tensor | None = None

    @property
    def pretrain_objective(self) -> dict[str, Any]:
        """Reconstruction from noise, with small weights."""
        return {"reconstruction": "mse", "noise": self.noise, "beta": self.beta}

    def pretrain_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return L_r and beta L_w."""
        return self._autoencoder_terms(batch["x"])[1]

    def finetune_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return L_r, alpha L_c and beta L_w, eq. (7)."""
        assert self.target is not None
        z, terms = self._autoencoder_terms(batch["x"])  # (B, d)
        q = soft_assignment(z, self.centers)  # (B, K)  eq. (3)
        p = self.target[batch["index"]]  # (B, K)  eq. (5)
        return {"clustering": self.alpha * self.divergence(q, p), **terms}  # eq. (4)

    def retrain_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy with the pseudo-labels of the batch, all of them reliable."""
        assert self.pseudo_labels is not None
        logits = self.classifier(batch["x"])  # (B, K)
        return {"classification": cross_entropy(logits, self.pseudo_labels[batch["index"]])}

    def _autoencoder_terms(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the embedding of noisy images and what the autoencoder pays for them."""
        z, x_hat = self.network(x + self.noise * torch.randn_like(x))  # (B, d), (B, C, H, W)
        reconstruction = self.network.reconstruction_loss(x, x_hat)  # eq. (2)
        weights = self.beta * squared_weights(self.network)  # eq. (6)
        return z, {"reconstruction": reconstruction, "weights": weights}

    def setup(self, stage: str) -> None:
        """Train the autoencoder first, and then the classifier alone."""
        super().setup(stage)
        retrain = self.phase == "retrain"
        self.classifier.requires_grad_(retrain)
        if retrain:
            self.network.requires_grad_(False)
            self.centers.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return class probabilities once the classifier is trained, q before; ``(B, K)``."""
        return self.classify(x) if self.phase == "retrain" else super().forward(x)

    def learned_embedding(self, x: Tensor) -> Tensor:
        """Return module A's embedding, and the classifier's hidden layer in module B."""
        retrain = self.phase == "retrain"
        return self.classifier.hidden(x) if retrain else super().learned_embedding(x)

    def classify(self, x: Tensor) -> Tensor:
        """Return the classifier's probabilities of images ``(B, C, H, W)``, shape ``(B, K)``."""
        probabilities: Tensor = self.classifier(x).softmax(1)
        return probabilities

    def assign_samples(self, samples: Samples, z: Tensor) -> Tensor:
        """Let the classifier label all samples, once it is trained."""
        if self.phase != "retrain":
            return super().assign_samples(samples, z)
        classifier = self.to(z.device).classifier
        return full_pass(self.classify, classifier, in_order(samples.x), z.device)
