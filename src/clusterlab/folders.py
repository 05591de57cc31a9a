"""The run folder and its phase folders: what is finished, with which settings, by which weights."""

import io
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from clusterlab.errors import problem
from clusterlab.files import locked, read_json, write_atomically, write_json
from clusterlab.loggers import read_csv
from clusterlab.models.base import DeepClustering, check_checkpoint, check_shapes

# Where, how and how often: what may differ between two runs of the same settings.
NOT_SETTINGS = (
    "output_dir",
    "run_dir",
    "pretrained_dir",
    "restart",
    "figures",
    "progress",
    "logger",
    "trainer",
    "experiment_name",
    "asked",
    "checkpoint_interval",
    "optimize",
    "jobs_per_gpu",
    "seed",
)
# The same of a trainer; what else is added to it, such as gradient_clip_val, is a setting.
NOT_SETTINGS_OF_TRAINER = (
    *("_target_", "accelerator", "devices", "num_nodes", "strategy", "plugins"),
    "precision",  # told by itself
    *("num_sanity_val_steps", "use_distributed_sampler", "benchmark", "detect_anomaly"),
    *("enable_progress_bar", "enable_model_summary", "log_every_n_steps", "profiler"),
)


def settings_of_trainer(cfg: DictConfig) -> dict[str, Any]:
    """Return what decides the result in the trainer's config, but for the precision.

    Example:
        >>> cfg = OmegaConf.create({"trainer": {"devices": 2, "gradient_clip_val": 1}})
        >>> settings_of_trainer(cfg)
        {'gradient_clip_val': 1}
    """
    trainer = OmegaConf.to_container(cfg.trainer, resolve=True)
    assert isinstance(trainer, dict)
    return {str(k): v for k, v in trainer.items() if k not in NOT_SETTINGS_OF_TRAINER}


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """Return the part of a config that decides the result, without the seed."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(settings, dict)
    for name in NOT_SETTINGS:
        settings.pop(name, None)
    for node in (settings["data"], settings["data"]["source"]):
        for name in ("root", "cache", "path"):  # where files lie; data_sha256 says what is in them
            node.pop(name, None)
    if settings["model"].get("seed") == cfg.seed:  # one of its own is a setting: sweep=starts
        del settings["model"]["seed"]
    settings["precision"] = cfg.trainer.precision
    if of_trainer := settings_of_trainer(cfg):
        settings["trainer"] = of_trainer
    return settings  # type: ignore[return-value]


@contextmanager
def opened(cfg: DictConfig, made_from: Mapping[str, Any]) -> Iterator[Path]:
    """Hold the run folder: make it, or check that it was made with the same settings and data.

    Raises:
        UserError: If it was made with others, holds something else, or cannot be written.
    """
    run_dir = Path(cfg.run_dir)
    new = not run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with locked(run_dir, "making this run"):
            prepare(run_dir, cfg, {**settings_of(cfg), "seed": cfg.seed, **made_from})
            yield run_dir
    except OSError as error:
        if (run_dir / "settings.json").exists():
            raise
        if new:
            shutil.rmtree(run_dir, ignore_errors=True)
        raise problem(
            "a folder that can be written",
            f"{run_dir} ({error.strerror})",
            "set output_dir to one with space that you may write to",
        ) from None


def prepare(run_dir: Path, cfg: DictConfig, settings: dict[str, Any]) -> None:
    """Compare a run folder's settings with those asked for, and write them into a new one."""
    made_with = run_dir / "settings.json"
    if made_with.exists() and cfg.restart:
        for path in run_dir.iterdir():  # the settings stay, so that a kill leaves a run folder
            if path.is_dir():
                shutil.rmtree(path)
            elif path not in (made_with, run_dir / ".lock"):
                path.unlink()
    elif made_with.exists():
        difference = first_difference(read_json(made_with), settings)
        if difference:
            raise problem(
                f"the settings that {run_dir} was made with",
                difference,
                "choose another run_dir, or restart=true to start it over",
            )
    elif any(not path.name.startswith(".") for path in run_dir.iterdir()):
        raise problem(
            "an empty folder or a run",
            f"{run_dir} with other files in it",
            "choose another run_dir",
        )
    write_json(made_with, settings)
    write_atomically(run_dir / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True).encode())


def first_difference(before: Any, now: Any, name: str = "") -> str:
    """Name the first value in which two nested settings differ; empty if none.

    Example:
        >>> first_difference({"loss": {"gamma": 0.1}}, {"loss": {"gamma": 0.5}})
        'loss.gamma=0.5 instead of 0.1'
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            inner = f"{name}.{key}" if name else str(key)
            difference = first_difference(before.get(key), now.get(key), inner)
            if difference:
                return difference
        return ""
    return "" if before == now else f"{name}={now} instead of {before}"


@dataclass(frozen=True)
class PhaseFolder:
    """One phase on disk: ``last.ckpt`` while it trains, then ``weights.ckpt`` and ``phase.json``.

    ``phase.json`` is written last: a folder with it is finished, whatever happened before.
    """

    path: Path

    @property
    def finished(self) -> bool:
        """Whether the phase is finished."""
        return (self.path / "phase.json").exists()

    @property
    def last(self) -> Path:
        """The checkpoint to resume from; there only while the phase is unfinished."""
        return self.path / "last.ckpt"

    @property
    def weights(self) -> Path:
        """The trained weights; there once the phase is finished."""
        return self.path / "weights.ckpt"

    def record(self) -> dict[str, Any]:
        """Return how the phase went."""
        return read_json(self.path / "phase.json")

    def rows(self) -> list[dict[str, Any]]:
        """Return what the phase logged; nothing for one that was not trained."""
        metrics = self.path / "metrics.csv"
        return read_csv(metrics) if metrics.exists() else []

    def save(self, model: DeepClustering, record: dict[str, Any]) -> None:
        """Leave the phase finished with a model's weights."""
        self.path.mkdir(parents=True, exist_ok=True)
        checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
        model.on_save_checkpoint(checkpoint)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_atomically(self.weights, content.getvalue())
        write_json(self.path / "phase.json", record)
        self.tidy()

    def tidy(self) -> None:
        """Remove the checkpoint of a phase that is finished, also a half-written one."""
        self.last.unlink(missing_ok=True)
        self.last.with_suffix(".part").unlink(missing_ok=True)

    def load(self, model: DeepClustering, phase: str) -> None:
        """Load the finished phase's weights.

        Raises:
            UserError: If they are of another model, phase or shape.
        """
        checkpoint = load_checkpoint(self.weights)
        check_checkpoint(checkpoint, model, phase)
        model.load_state_dict(checkpoint["state_dict"])
        model.phase = phase
        self.tidy()


def load_network(path: Path, model: DeepClustering) -> None:
    """Start from somebody's autoencoder: the network's weights in any of our checkpoints.

    Raises:
        UserError: If there is no such file, or its shapes differ.
    """
    prefix = "network."
    state = {
        name.removeprefix(prefix): value
        for name, value in load_checkpoint(path)["state_dict"].items()
        if name.startswith(prefix)
    }
    check_shapes(state, model.network.state_dict())
    model.network.load_state_dict(state)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Raises:
        UserError: If it is not there or not a checkpoint.
    """
    if not path.is_file():
        raise problem("a checkpoint", f"no file {path}", "check the path")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no exception of its own for a file it cannot read
        reason = (str(error) or type(error).__name__).splitlines()
        raise problem(
            "a checkpoint",
            f"a file that torch cannot read, {path} ({reason[0]})",
            "give the weights.ckpt of a run's phase",
        ) from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise problem(
            "a checkpoint with 'state_dict'",
            f"another kind of file, {path}",
            "give the weights.ckpt of a run's phase",
        )
    return checkpoint
