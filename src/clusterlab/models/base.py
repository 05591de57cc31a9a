"""What every deep clustering model shares: phases, centers, and the sum of an objective's terms."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from clusterlab.assignment import soft_assignment, target_distribution
from clusterlab.centers import kmeans
from clusterlab.data.datamodule import Batch, ClusterData, in_order
from clusterlab.data.samples import Samples
from clusterlab.distributed import full_pass, interleave
from clusterlab.errors import problem
from clusterlab.networks import Autoencoder
from clusterlab.seeding import derive_seed
from clusterlab.trouble import SUSPECT

AT_A_TIME = 8192  # samples, where all are assigned


class DeepClustering(LightningModule):
    """Train an autoencoder and K cluster centers, one ``Trainer.fit`` per phase.

    A phase named ``finetune`` minimises the sum of the terms that ``finetune_loss`` returns. What
    happens every T steps is a callback's; a paper's file states what it does differently from the
    defaults here, which are those of most papers: plain reconstruction first, then k-means, then
    a sharpened soft assignment as the target.

    Args:
        network: The autoencoder.
        n_clusters: K.
        seed: Seed of k-means and of everything random in training: each epoch starts from (seed,
            phase, epoch, rank), which makes a resumed epoch the epoch it would have been.
        n_init: Starts of k-means; the best counts.
        finetune_decoder: Whether the finetune objective needs the decoder. If not it is frozen,
            since DDP does not accept parameters without a gradient.

    Raises:
        UserError: If there are no starts of k-means.

    Attributes:
        images_only: Whether samples must have height and width; a subclass's to say.
        compares_views: Whether a batch's views are read, rather than its images being changed; a
            subclass's to say.
        unit_length: Whether embeddings must have length 1; a subclass's to say.
        suspect: The term to weigh less where clusters collapse, in words; a subclass's to say.
        centers: Cluster centers, shape ``(K, d)``, trained in the finetune phase.
        phase: Name of the current phase.
        optimizer: Builds the current phase's optimizer from parameters.
        target: Target distribution of the whole data set, shape ``(N, K)``; a callback's to set.
    """

    images_only = False
    compares_views = False
    unit_length = False
    suspect = SUSPECT

    def __init__(
        self,
        network: Autoencoder,
        n_clusters: int,
        seed: int,
        n_init: int = 20,
        finetune_decoder: bool = True,
    ) -> None:
        super().__init__()
        if n_init < 1:
            raise problem("starts of k-means, 1 or more", f"{n_init!r}", "set model.n_init=20")
        self.network = network
        self.centers = nn.Parameter(torch.zeros(n_clusters, network.embedding_dim))
        self.seed = seed
        self.n_init = n_init
        self.finetune_decoder = finetune_decoder
        self.phase = "pretrain"
        self.optimizer: Callable[[Iterator[nn.Parameter]], Optimizer] = torch.optim.Adam
        self.target: Tensor | None = None
        self._sums: Tensor | None = None  # of each term over the epoch, weighted by batch size
        self._broken_at: Tensor | None = None  # step at which each term stopped being finite, or -1
        self._samples = 0
        self._terms: list[str] = []

    # The paper's part, with the choice most papers make

    @property
    def pretrain_objective(self) -> dict[str, Any]:
        """Say what the pretrain loss depends on besides network, optimizer, data and seed.

        Models with equal answers share pretrained weights. A class with a pretrain loss of its own
        that says nothing here shares with its own kind alone.
        """
        kind = type(self)
        silent = kind.pretrain_objective is DeepClustering.pretrain_objective
        if silent and kind.pretrain_loss is not DeepClustering.pretrain_loss:
            return {"class": f"{kind.__module__}.{kind.__qualname__}"}
        return {"reconstruction": "mse"}

    def pretrain_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted terms of the pretrain objective; the loss is their sum."""
        _, x_hat = self.network(batch["x"])  # (B, d), (B, C, H, W)
        return {"reconstruction": self.network.reconstruction_loss(batch["x"], x_hat)}

    def initial_centers(self, z: Tensor) -> Tensor:
        """Return centers, shape ``(K, d)``, from the whole embedding, shape ``(N, d)``."""
        centers, _ = kmeans(z, len(self.centers), self.seed, self.n_init)
        return centers

    def refresh_target(self, q: Tensor) -> Tensor:
        """Return the target distribution from the whole soft assignment, both ``(N, K)``."""
        return target_distribution(q)

    def learned_embedding(self, x: Tensor) -> Tensor:
        """Return the embedding that the current phase trains, of images; shape ``(B, d)``."""
        return self.network.encode(x)

    # Using a trained model

    def assign(self, z: Tensor) -> Tensor:
        """Return the soft assignment of embeddings, shape ``(B, K)``."""
        return soft_assignment(z, self.centers)

    def assign_all(self, z: Tensor) -> Tensor:
        """Return the soft assignment of a whole data set's embeddings, shape ``(N, K)``.

        A part at a time: the differences to all centers take d times the memory of q.
        """
        return torch.cat([self.assign(part) for part in torch.split(z, AT_A_TIME)])

    def forward(self, x: Tensor) -> Tensor:
        """Return the soft assignment of images ``(B, C, H, W)``, shape ``(B, K)``."""
        return self.assign(self.network.encode(x))

    @property
    def inductive(self) -> bool:
        """Whether the clusters lie in the network's embedding.

        Only then can new samples be labelled and cluster centers decoded.
        """
        return self.centers.shape[1] == self.network.embedding_dim

    def embed_samples(self, samples: Samples, device: torch.device) -> Tensor:
        """Embed a data set on one device, outside training; shape ``(N, d)``."""
        return full_pass(self.network.encode, self.to(device).network, in_order(samples.x), device)

    def assign_samples(self, samples: Samples, z: Tensor) -> Tensor:
        """Return the soft assignment of a data set, shape ``(N, K)``.

        Args:
            samples: The data set, for models that label images rather than embeddings.
            z: Its embedding, shape ``(N, d)``; on the device to work on.
        """
        with torch.no_grad():
            return self.to(z.device).assign_all(z)

    def reconstruction_error(self, samples: Samples, device: torch.device) -> float:
        """Return the mean squared error of a data set's reconstruction, pixels being in [0, 1]."""

        def error(x: Tensor) -> Tensor:
            x_hat: Tensor = self.network(x)[1]
            return (x_hat - x).square().flatten(1).mean(1)

        return float(full_pass(error, self.to(device).network, in_order(samples.x), device).mean())

    def embed_dataset(self) -> Tensor:
        """Embed the training's data set in order; ``(N, d)``, the same bits on every rank."""
        return self.over_dataset(self.network.encode, self.network)

    def over_dataset(self, function: Callable[[Tensor], Tensor], module: nn.Module) -> Tensor:
        """Map the training's images in order; ``(N, d)``, the same bits on every rank."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ClusterData)
        if self.trainer.world_size > 1:  # each rank's batch normalisation saw other batches
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)
        rows = full_pass(function, module, data.ordered_dataloader(), self.device)
        if self.trainer.world_size > 1:
            rows = interleave(self.all_gather(rows), len(data.samples))  # type: ignore[arg-type]
        return rows

    # Lightning's part

    def setup(self, stage: str) -> None:
        """Free the parameters that this phase trains and freeze the others, before DDP wraps."""
        finetune = self.phase != "pretrain"
        self.network.requires_grad_(True)
        self.network.decoder.requires_grad_(self.finetune_decoder or not finetune)
        self.centers.requires_grad_(finetune)

    def configure_optimizers(self) -> Optimizer:
        """Build the phase's optimizer over the parameters it trains."""
        return self.optimizer(p for p in self.parameters() if p.requires_grad)

    def on_train_epoch_start(self) -> None:
        """Start the epoch's randomness and sums; checkpoints are written between epochs only."""
        torch.manual_seed(derive_seed(self.seed, self.phase, self.current_epoch, self.global_rank))
        self._sums, self._samples = None, 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of the phase's terms."""
        terms: dict[str, Tensor] = getattr(self, f"{self.phase}_loss")(batch)
        if self._sums is None:
            check_terms(terms, f"{self.phase}_loss")
        values = torch.stack(list(terms.values()))
        detached, size = values.detach(), len(batch["index"])
        if self._sums is None:
            self._terms = list(terms)
            self._sums = torch.zeros_like(detached)
            self._broken_at = torch.full_like(detached, -1)
        # Nothing here waits for a GPU: terms are summed and watched where they are.
        self._sums += detached * size
        self._samples += size
        assert self._broken_at is not None
        fresh = ~detached.isfinite() & (self._broken_at < 0)
        self._broken_at.masked_fill_(fresh, self.global_step)
        if self.device.type == "cpu" or self.global_step % 50 == 0:
            self._stop_if_broken()
        return values.sum()

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean of each term, once an epoch: logging each step costs up to 1 ms."""
        if self._sums is None:
            return
        self._stop_if_broken()
        means = self.trainer.strategy.reduce(self._sums / self._samples, reduce_op="mean").tolist()
        logs = {f"{self.phase}/{name}": mean for name, mean in zip(self._terms, means, strict=True)}
        logs[f"{self.phase}/loss"] = sum(means)
        self.log_dict(logs, logger=False)  # for other people's callbacks
        self.log_now(logs)

    def log_now(self, values: dict[str, float]) -> None:
        """Send values to the run's loggers at the current step.

        ``self.log`` would send them after the epoch's checkpoint is written: a run killed between
        the two would miss them.
        """
        for logger in self.loggers:
            logger.log_metrics(values, self.global_step)

    def running_terms(self) -> dict[str, float]:
        """Return the mean of each term over the epoch so far, for a progress display."""
        if self._sums is None:
            return {}
        return dict(zip(self._terms, (self._sums / self._samples).tolist(), strict=True))

    def _stop_if_broken(self) -> None:
        assert self._broken_at is not None
        steps = self._broken_at.tolist()
        if max(steps) < 0:
            return
        step, name = min((s, n) for s, n in zip(steps, self._terms, strict=True) if s >= 0)
        raise problem(
            "a finite loss",
            f"NaN or infinity in the term '{name}' at step {int(step)} of {self.phase}",
            f"lower phases.{self.phase}.optimizer.lr",
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write what the file is for, so that another phase or model can refuse it."""
        checkpoint["clusterlab"] = {"model": type(self).__name__, "phase": self.phase}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another phase, model or shape.

        Raises:
            UserError: Saying which.
        """
        check_checkpoint(checkpoint, self, phase=self.phase)


def check_terms(terms: Any, loss: str) -> None:
    """Refuse what is no sum of scalars: a vector of them would be summed without a word.

    Args:
        terms: What the loss returned.
        loss: Its name.

    Raises:
        UserError: Naming the first.
    """
    remedy = "return {'name': scalar}, as the losses of the papers do"
    if not isinstance(terms, dict) or not terms:
        got = terms if isinstance(terms, dict) else f"a {type(terms).__name__}"
        raise problem(f"a dict of terms from {loss}", got, remedy)
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.ndim:
            shape = f" of shape {tuple(term.shape)}" if isinstance(term, Tensor) else ""
            got = f"a {type(term).__name__}{shape}"
            raise problem(f"a tensor with one number as the term '{name}' of {loss}", got, remedy)


def check_checkpoint(
    checkpoint: dict[str, Any], model: DeepClustering, phase: str | None = None
) -> None:
    """Compare a checkpoint's model, phase and shapes with what a model needs.

    Args:
        checkpoint: A loaded Lightning checkpoint.
        model: The model to be filled.
        phase: The phase it must be of; ``None`` accepts any.

    Raises:
        UserError: If they differ.
    """
    origin = checkpoint.get("clusterlab", {"model": "another program", "phase": "none"})
    if origin["model"] != type(model).__name__:
        raise problem(
            f"a checkpoint of {type(model).__name__}",
            f"one of {origin['model']}",
            "use the model it was trained with, or give its network as init_from",
        )
    if phase not in (None, origin["phase"]):
        raise problem(
            f"a checkpoint of phase '{phase}'",
            f"one of phase '{origin['phase']}'",
            "pass it as init_from",
        )
    check_shapes(checkpoint["state_dict"], model.state_dict())


def check_shapes(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare names and shapes of two state dicts.

    Raises:
        UserError: Naming the first difference.
    """
    for name in dict.fromkeys([*expected, *got]):
        shapes = [
            "none" if name not in state else str(tuple(state[name].shape))
            for state in (expected, got)
        ]
        if shapes[0] != shapes[1]:
            raise problem(
                f"weights '{name}' of shape {shapes[0]}",
                shapes[1],
                "use the network, image size and n_clusters that they were made with",
            )
