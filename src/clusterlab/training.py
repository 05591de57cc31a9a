"""Run what a config asks for: phases one after the other, then scores, figures and the record."""

import io
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from clusterlab import figures
from clusterlab.callbacks import PhaseCheckpoint, Progress, TargetRefresh
from clusterlab.data.datamodule import Batches, ClusterData, InOrder
from clusterlab.data.samples import Samples, digest
from clusterlab.distributed import embed
from clusterlab.errors import UserError
from clusterlab.files import locked, settings_digest, write_atomically, write_json
from clusterlab.loggers import PhaseCsv, read_csv, write_csv
from clusterlab.models.base import DeepClustering, check_checkpoint, check_shapes
from clusterlab.record import environment, evaluate

log = logging.getLogger(__name__)

# What may differ between two runs of the same settings: places, displays, machines.
NOT_SETTINGS = (
    "output_dir",
    "run_dir",
    "pretrained_dir",
    "restart",
    "figures",
    "logger",
    "trainer",
    "experiment_name",
    "checkpoint_interval",
    "seed",
)


def run(cfg: DictConfig) -> dict[str, Any]:
    """Train, evaluate, draw and record one run, or print what is missing from a started one.

    Args:
        cfg: The composed config of ``conf/train.yaml``; ``run_dir`` must be set.

    Returns:
        The content of ``result.json``.

    Raises:
        UserError: If config, data, checkpoint or folder are not what they must be.
    """
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))  # type: ignore[assignment]
    device = training_device(cfg.trainer)
    check_seed(cfg.seed)
    samples: Samples = build(cfg.data.source)
    cfg.n_clusters = number_of_clusters(cfg.n_clusters, samples)
    data = ClusterData(samples, cfg.data.batch_size, cfg.seed)
    seed_everything(cfg.seed, verbose=False)
    network = build(cfg.network, image_shape=samples.image_shape)
    model: DeepClustering = build(cfg.model, network=network)
    for phase in cfg.phases.values():  # a wrong value in the last phase must not wait for it
        build(phase.callbacks)

    run_dir = Path(cfg.run_dir)
    identity = {**settings_of(cfg), "seed": cfg.seed, "data_sha256": samples.sha256}
    if rank_zero_only.rank != 0:  # a rank that Lightning started: rank 0 looks after the folder
        train_phases(cfg, model, data, run_dir, device)
        return {}
    with locked(open_folder(run_dir, cfg, identity), "making this run"):
        result_file = run_dir / "result.json"
        if result_file.exists() and "error" not in (result := json.loads(result_file.read_text())):
            log.info("Finished before: nothing to train.")
            return dict(result)
        handler = logging.FileHandler(run_dir / "train.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("clusterlab").addHandler(handler)
        record = {
            "model": cfg.model_name,
            "data": samples.name,
            "seed": cfg.seed,
            "experiment": cfg.experiment_name,
            "n_samples": len(samples),
            "n_clusters": cfg.n_clusters,
            "data_sha256": samples.sha256,
            "labels_sha256": None if samples.y is None else digest(samples.y),
            "settings_sha256": settings_digest(settings_of(cfg)),
            **environment(device),
        }
        config = OmegaConf.to_container(cfg, resolve=True)
        try:
            record |= train_and_evaluate(cfg, model, data, run_dir, device)
        except Exception as error:
            write_json(result_file, {**record, "error": str(error), "config": config})
            raise
        finally:
            logging.getLogger("clusterlab").removeHandler(handler)
            handler.close()
        record["config"] = config
        write_json(result_file, record)
        return record


def train_and_evaluate(
    cfg: DictConfig, model: DeepClustering, data: ClusterData, run_dir: Path, device: torch.device
) -> dict[str, Any]:
    """Train what is not trained yet, then score, store and draw the final state."""
    loggers = [build(logger, save_dir=run_dir) for logger in cfg.logger.values()]
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
    phases, embeddings = train_phases(cfg, model, data, run_dir, device, loggers)

    samples = data.samples
    model.to(device)
    z = embed_all(model, samples, device)
    with torch.no_grad():
        q = model.assign(z)
    z, q = z.cpu(), q.cpu()
    content = io.BytesIO()
    np.savez_compressed(
        content, index=np.arange(len(q)), label=q.argmax(1).numpy(), q=q.numpy(), z=z.numpy()
    )
    write_atomically(run_dir / "assignments.npz", content.getvalue())
    rows = [row for name in phases for row in phase_rows(run_dir / name)]
    write_csv(run_dir / "metrics.csv", rows)
    scores = evaluate(z, q, samples.y)
    for line in scores["label_free"]["trouble"]:
        log.warning("At the end: %s", line)
    record = {
        **scores,
        "phases": phases,
        "seconds": sum(phase["seconds"] for phase in phases.values()),
    }
    if cfg.figures:
        before = embeddings.get("pretrain")
        paths = figures.draw(run_dir / "figures", model, samples, before, z, q, rows, cfg)
        figures.send(paths, loggers)
    for logger in loggers:
        logger.log_hyperparams({"result": {**scores["metrics"], **scores["label_free"]}})
        logger.finalize("success")
    return record


def train_phases(
    cfg: DictConfig,
    model: DeepClustering,
    data: ClusterData,
    run_dir: Path,
    device: torch.device,
    loggers: list[Logger] | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fit each phase in turn, or load it where it is finished.

    Returns:
        The record of each phase and the embedding after it, shape ``(N, d)``, on the CPU.
    """
    records: dict[str, Any] = {}
    embeddings: dict[str, Tensor] = {}
    for name, phase in cfg.phases.items():
        folder = run_dir / name
        if finished(folder):
            load_phase(folder, model, name)
        elif name == "pretrain" and cfg.init_from is not None:
            load_weights(Path(cfg.init_from), model)
            save_phase(folder, model, name, {"stop_reason": f"init_from {cfg.init_from}"})
        elif name == "pretrain" and cfg.pretrained_dir is not None:
            share_pretraining(cfg, model, data, folder, loggers or [])
        else:
            fit(cfg, phase, name, model, data, folder, loggers or [])
        records[name] = json.loads((folder / "phase.json").read_text())
        if rank_zero_only.rank == 0 and cfg.figures:
            embeddings[name] = embed_all(model.to(device), data.samples, device).cpu()
    return records, embeddings


def fit(
    cfg: DictConfig,
    phase: DictConfig,
    name: str,
    model: DeepClustering,
    data: ClusterData,
    folder: Path,
    loggers: list[Logger],
) -> None:
    """Fit one phase, from its checkpoint if there is one, and leave it finished in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.phase = name
    model.optimizer = build(phase.optimizer)
    last = folder / "last.ckpt"
    checkpoint = PhaseCheckpoint(last, cfg.checkpoint_interval)
    callbacks = build(phase.callbacks)
    trainer: Trainer = build(
        cfg.trainer,
        max_epochs=phase.max_epochs,
        max_steps=phase.max_steps,
        callbacks=[*callbacks.values(), Progress(), checkpoint],
        logger=[PhaseCsv(folder / "metrics.csv", name), *loggers],
    )
    if last.exists():
        log.info("Resuming %s from %s.", name, last)
    trainer.fit(model, data, ckpt_path=last if last.exists() else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    record: dict[str, Any] = {
        "seconds": checkpoint.seconds,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "stop_reason": "max_steps" if trainer.global_step == phase.max_steps else "max_epochs",
    }
    for refresh in callbacks.values():
        if isinstance(refresh, TargetRefresh):
            if refresh.converged:
                record["stop_reason"] = "tolerance"
            record |= {
                "label_change": refresh.change,
                "refreshes": refresh.refreshes,
                "refresh_seconds": refresh.seconds,
                "metrics_at_start": refresh.first,
            }
    if trainer.is_global_zero:
        save_phase(folder, model, name, record)
        last.unlink(missing_ok=True)
    trainer.strategy.barrier()
    log.info(
        "%s: %d steps in %.0f s, stopped by %s.",
        name,
        record["steps"],
        record["seconds"],
        record["stop_reason"],
    )


def share_pretraining(
    cfg: DictConfig, model: DeepClustering, data: ClusterData, folder: Path, loggers: list[Logger]
) -> None:
    """Take the pretrain phase from the store under its digest, or make it there.

    A store entry is a phase folder like any other: made under a lock, resumed if it was killed,
    taken for finished only with its ``phase.json``, which is written last.
    """
    made_of = {
        "network": OmegaConf.to_container(cfg.network, resolve=True),
        "objective": model.pretrain_objective,
        "phase": OmegaConf.to_container(cfg.phases.pretrain, resolve=True),
        "data_sha256": data.samples.sha256,
        "batch_size": data.batch_size,
        "seed": cfg.seed,
        "device": training_device(cfg.trainer).type,
        "devices": cfg.trainer.devices,
        "precision": cfg.trainer.precision,
        "torch": torch.__version__,
    }
    entry = Path(cfg.pretrained_dir) / settings_digest(made_of)[:16]
    if rank_zero_only.rank != 0:
        fit(cfg, cfg.phases.pretrain, "pretrain", model, data, entry, loggers)
        return
    entry.mkdir(parents=True, exist_ok=True)
    with locked(entry, "pretraining the same autoencoder"):
        reused = finished(entry)
        if reused:
            log.info("Reusing the pretrained autoencoder %s.", entry)
            load_phase(entry, model, "pretrain")
            for logger in loggers:
                for row in phase_rows(entry):
                    metrics = {k: v for k, v in row.items() if k not in ("phase", "step")}
                    logger.log_metrics(metrics, row["step"])
        else:
            write_json(entry / "made_of.json", made_of)
            fit(cfg, cfg.phases.pretrain, "pretrain", model, data, entry, loggers)
        folder.mkdir(parents=True, exist_ok=True)
        record = json.loads((entry / "phase.json").read_text())
        shutil.copyfile(entry / "metrics.csv", folder / "metrics.csv")
        save_phase(folder, model, "pretrain", {**record, "reused": reused, "store": entry.name})


# A finished phase is a folder with weights.ckpt and, written after it, phase.json.


def finished(folder: Path) -> bool:
    """Tell whether a phase is finished."""
    return (folder / "phase.json").exists()


def save_phase(folder: Path, model: DeepClustering, name: str, record: dict[str, Any]) -> None:
    """Leave a phase finished: its weights, then its record."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.phase = name
    model.on_save_checkpoint(checkpoint)
    content = io.BytesIO()
    torch.save(checkpoint, content)
    write_atomically(folder / "weights.ckpt", content.getvalue())
    empty = {"seconds": 0.0, "epochs": 0, "steps": 0}
    write_json(folder / "phase.json", {**empty, **record})


def load_phase(folder: Path, model: DeepClustering, name: str | None) -> None:
    """Load a finished phase's weights.

    Raises:
        UserError: If they are of another model, phase or shape.
    """
    checkpoint = load_checkpoint(folder / "weights.ckpt")
    check_checkpoint(checkpoint, model, name)
    model.load_state_dict(checkpoint["state_dict"])


def load_weights(path: Path, model: DeepClustering) -> None:
    """Start from somebody's autoencoder: the ``network`` weights of any of our checkpoints.

    Raises:
        UserError: If there is no such file, or its shapes differ.
    """
    state = load_checkpoint(path)["state_dict"]
    prefix = "network."
    weights = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    check_shapes(weights, model.network.state_dict())
    model.network.load_state_dict(weights)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Raises:
        UserError: If it is not there or not a checkpoint.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"Expected a checkpoint, got no file {path}; check the path.") from None
    except Exception as error:
        raise UserError(
            f"Expected a checkpoint, got a file that torch cannot read ({path}: "
            f"{str(error).splitlines()[0]}); give a weights.ckpt of a run."
        ) from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(
            f"Expected a checkpoint with 'state_dict', got something else in {path}; "
            "give a weights.ckpt of a run."
        )
    return checkpoint


def phase_rows(folder: Path) -> list[dict[str, Any]]:
    """Return what a phase logged; nothing for one that was not trained here."""
    path = folder / "metrics.csv"
    return read_csv(path) if path.exists() else []


def embed_all(model: DeepClustering, samples: Samples, device: torch.device) -> Tensor:
    """Embed the whole data set on one device; shape ``(N, d)``."""
    batches = Batches(samples.x, InOrder(len(samples), ClusterData.encode_batch_size))
    return embed(model.network, batches, device)


# The border: what a user can get wrong


def build(node: Any, **kwargs: Any) -> Any:
    """Instantiate a config node, and let a ``UserError`` through as it was raised."""
    try:
        return instantiate(node, _convert_="object", **kwargs)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def check_seed(seed: Any) -> None:
    """Refuse a seed that is not one.

    Raises:
        UserError: If it is not an integer of 0..2^32 - 1.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"Expected a seed from 0 to 2^32 - 1, got {seed!r}; set seed=0.")


def number_of_clusters(asked: Any, samples: Samples) -> int:
    """Return K: what was asked for, else the number of classes of labelled data.

    Raises:
        UserError: If neither is there, or K does not fit the data.
    """
    n_clusters = samples.n_classes if asked is None else asked
    if n_clusters is None:
        raise UserError(
            f"Expected the number of clusters for the unlabelled data '{samples.name}', "
            "got none; set n_clusters=10."
        )
    if not isinstance(n_clusters, int) or not 2 <= n_clusters <= len(samples):
        raise UserError(
            f"Expected n_clusters from 2 to the {len(samples)} samples of {samples.name}, "
            f"got {n_clusters}; set n_clusters."
        )
    return n_clusters


def training_device(trainer: DictConfig) -> torch.device:
    """Return the device a trainer config asks for.

    Raises:
        UserError: If it is unknown, or there are fewer.
    """
    count = torch.cuda.device_count()
    available = {
        "cpu": 1_000 if trainer.get("strategy", "auto") != "auto" else 1,
        "gpu": count,
        "cuda": count,
        "mps": int(torch.backends.mps.is_available()),
    }
    accelerator = trainer.accelerator
    if accelerator == "auto":
        accelerator = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if accelerator not in available:
        raise UserError(
            f"Expected a device of {', '.join(['auto', *available])}, got '{accelerator}'; "
            "set trainer.accelerator=cpu."
        )
    wanted = trainer.devices
    if not isinstance(wanted, int) or not 1 <= wanted <= available[accelerator]:
        raise UserError(
            f"Expected 1 to {available[accelerator]} devices of kind '{accelerator}', got {wanted}; "
            "set trainer.devices, or trainer=ddp for several processes on a CPU."
        )
    return torch.device("cuda" if accelerator == "gpu" else accelerator)


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """Return the part of a config that decides the result, without the seed."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(settings, dict)
    for name in NOT_SETTINGS:
        settings.pop(name, None)
    for node in (settings["data"], settings["data"]["source"]):
        node.pop("root", None)  # where the file lies; data_sha256 says what is in it
    settings["precision"] = cfg.trainer.precision
    return settings  # type: ignore[return-value]


def open_folder(run_dir: Path, cfg: DictConfig, identity: dict[str, Any]) -> Path:
    """Make the run folder, or check that it was made with the same settings.

    Raises:
        UserError: If it was made with others, or cannot be written.
    """
    made_with = run_dir / "settings.json"
    if cfg.restart and made_with.exists():
        shutil.rmtree(run_dir)
    try:
        if made_with.exists():
            before = json.loads(made_with.read_text())
            difference = first_difference(before, identity)
            if difference:
                raise UserError(
                    f"Expected the settings that {run_dir} was made with, got {difference}; "
                    "choose another run_dir, or restart=true to start it over."
                )
        elif run_dir.exists() and any(run_dir.iterdir()):
            raise UserError(
                f"Expected an empty folder or a run, got {run_dir} with other files in it; "
                "choose another run_dir."
            )
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(run_dir / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True).encode())
        write_json(made_with, identity)
    except OSError as error:
        raise UserError(
            f"Expected a folder that can be written, got {run_dir} ({error.strerror}); "
            "set output_dir to one with space that you may write to."
        ) from None
    return run_dir


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
