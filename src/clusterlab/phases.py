"""The phases of a run: each a ``Trainer.fit`` of its own; resumed, shared or loaded."""

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from clusterlab.callbacks import (
    CenterHistory,
    EmbeddingHistory,
    History,
    PhaseCheckpoint,
    Progress,
    SelfTraining,
    StepLimit,
    TargetRefresh,
)
from clusterlab.checks import build, training_device
from clusterlab.code import code_digest
from clusterlab.data.datamodule import ClusterData
from clusterlab.data.samples import Samples
from clusterlab.distributed import is_rank_zero
from clusterlab.errors import problem
from clusterlab.files import file_digest, locked, settings_digest, write_json
from clusterlab.folders import PhaseFolder, load_checkpoint, load_network, settings_of_trainer
from clusterlab.loggers import PhaseCsv, Row, replay
from clusterlab.memory import kept_memory
from clusterlab.models.base import DeepClustering
from clusterlab.record import device_name

log = logging.getLogger(__name__)

START_OVER = "start the run over with restart=true"


def train_phases(
    cfg: DictConfig,
    model: DeepClustering,
    data: ClusterData,
    run_dir: Path,
    device: torch.device,
    loggers: Sequence[Logger] = (),
) -> dict[str, Any]:
    """Fit each phase in turn, or load it where it is finished.

    Returns:
        The record of each phase, in order.
    """
    records: dict[str, Any] = {}
    made_of: dict[str, Any] = {}
    last = list(cfg.phases)[-1]
    for name, phase in cfg.phases.items():
        folder, code = PhaseFolder(run_dir / name), code_of(cfg, name, model)
        made_of = ingredients(cfg, model, data, name, made_of)
        if folder.finished:
            folder.load(model, name)
            replay(folder.rows(), loggers)
            records[name] = folder.record()
            made_by = records[name].get("code_sha256")
            tell_other_code(code, made_by, f"finished {name} phase", START_OVER)
            continue
        if name == "pretrain" and cfg.init_from is not None:
            model.phase = name
            record = {"seconds": 0.0, "epochs": 0, "steps": 0, "stop_reason": "init_from"}
        elif not phase:
            record = place_centers(model, name, data.samples, device)
        elif name != last and cfg.pretrained_dir is not None:
            record = share(cfg, name, model, data, folder, made_of, loggers)
        else:
            record = fit(cfg, phase, name, model, data, folder, loggers)
        record.setdefault("code_sha256", code)
        if is_rank_zero():
            folder.save(model, record)
        records[name] = record
    return records


def place_centers(
    model: DeepClustering, name: str, samples: Samples, device: torch.device
) -> dict[str, Any]:
    """Cluster the embedding as it is: a phase in which nothing is trained."""
    start = time.perf_counter()
    model.phase = name
    with torch.no_grad():
        model.centers.copy_(model.initial_centers(model.embed_samples(samples, device)))
    seconds = time.perf_counter() - start
    log.info("%s: centers placed in %.0f s, nothing is trained.", name, seconds)
    done = {"epochs": 0, "steps": 0, "stop_reason": "untrained"}
    return {"seconds": seconds, "device": device_name(device), **done}


def ingredients(
    cfg: DictConfig, model: DeepClustering, data: ClusterData, name: str, before: dict[str, Any]
) -> dict[str, Any]:
    """Say what decides the weights after a phase, the code by the shapes of its network alone.

    Args:
        cfg: The run's config.
        model: The model.
        data: The data.
        name: The phase.
        before: The same of the phase before; empty for the first.
    """
    phase = OmegaConf.to_container(cfg.phases[name], resolve=True)
    if before:
        settings: Any = OmegaConf.to_container(cfg.model, resolve=True)
        return {"after": settings_digest(before), "model": settings, "phase": phase}
    return {
        "network": OmegaConf.to_container(cfg.network, resolve=True),
        "shapes": {key: list(w.shape) for key, w in model.network.state_dict().items()},
        "objective": model.pretrain_objective,
        "phase": phase,
        "data_sha256": data.samples.sha256,
        "batch_size": data.batch_size,
        "seed": cfg.seed,
        "device": training_device(cfg.trainer).type,
        "devices": cfg.trainer.devices,
        "precision": cfg.trainer.precision,
        **settings_of_trainer(cfg),
        "torch": torch.__version__,
        **({} if cfg.init_from is None else {"init_from": file_digest(Path(cfg.init_from))}),
    }


def share(
    cfg: DictConfig,
    name: str,
    model: DeepClustering,
    data: ClusterData,
    folder: PhaseFolder,
    made_of: dict[str, Any],
    loggers: Sequence[Logger],
) -> dict[str, Any]:
    """Take a phase that others start from out of the store, or make it there.

    A store entry is a phase folder like any other, under the digest of what it is made of: made
    under a lock, resumed if it was killed, finished once it has its record. Every run keeps a copy
    of its own. An edit of the code leaves entries valid, since most do not touch what they hold:
    who takes one that other code made is told.
    """
    entry = PhaseFolder(Path(cfg.pretrained_dir) / settings_digest(made_of)[:16])
    if not is_rank_zero():
        return fit(cfg, cfg.phases[name], name, model, data, entry, loggers)
    entry.path.mkdir(parents=True, exist_ok=True)
    with locked(entry.path, f"making the same {name} phase"):
        reused = entry.finished
        if reused:
            what = "pretrained autoencoder" if name == "pretrain" else f"finished {name} phase"
            log.info("Reusing the %s in %s.", what, entry.path)
            record = entry.record()
            code, remedy = code_of(cfg, name, model), f"delete {entry.path}"
            tell_other_code(code, record["code_sha256"], what, remedy)
            if name == "pretrain":  # whichever model made it
                load_network(entry.weights, model)
                model.phase = name
                entry.tidy()
            else:
                entry.load(model, name)
            replay(entry.rows(), loggers)
        else:
            write_json(entry.path / "made_of.json", made_of)
            record = fit(cfg, cfg.phases[name], name, model, data, entry, loggers)
            entry.save(model, record)
        folder.path.mkdir(parents=True, exist_ok=True)
        for file in ("metrics.csv", EmbeddingHistory.FILE, CenterHistory.FILE):
            if (entry.path / file).exists():
                shutil.copyfile(entry.path / file, folder.path / file)
        return {**record, "reused": reused, "store": entry.path.name}


def code_of(cfg: DictConfig, name: str, model: DeepClustering) -> str:
    """Return the digest of the code that decides what a phase does.

    In pretraining that is the method's only if it has a loss of its own: a user's method that has
    none may take another's autoencoder, and there is nothing to tell.
    """
    if name == "pretrain" and type(model).pretrain_loss.__module__.startswith("clusterlab."):
        cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "model"])
    return code_digest(cfg)


def tell_other_code(code: str, made_by: str | None, what: str, remedy: str) -> None:
    """Warn that what a run goes on from is not of the code that its record will name."""
    if made_by != code and is_rank_zero():
        text = "The %s is of other code than this; if the difference matters, %s."
        log.warning(text, what, remedy)


def fit(
    cfg: DictConfig,
    phase: DictConfig,
    name: str,
    model: DeepClustering,
    data: ClusterData,
    folder: PhaseFolder,
    loggers: Sequence[Logger],
) -> dict[str, Any]:
    """Fit one phase, from its checkpoint if there is one, and return its record."""
    folder.path.mkdir(parents=True, exist_ok=True)
    model.phase = name
    model.optimizer = build(phase.optimizer)
    data.augment = build(phase.get("augment"))
    data.subset = None
    code, device = code_of(cfg, name, model), training_device(cfg.trainer)
    named = device_name(device)
    checkpoint = PhaseCheckpoint(folder.last, cfg.checkpoint_interval, code, named)
    callbacks = list(build(phase.callbacks).values())
    shown = [Progress(phase.max_steps)] if cfg.progress else []
    trainer: Trainer = build(
        cfg.trainer,
        max_epochs=phase.max_epochs,
        callbacks=[*callbacks, StepLimit(phase.max_steps), *shown, checkpoint],
        logger=[PhaseCsv(folder.path / "metrics.csv", name), *loggers],
    )
    resumed = folder.last.exists()
    if resumed and trainer.is_global_zero:
        saved = load_checkpoint(folder.last)
        step, own = saved["global_step"], saved["callbacks"][checkpoint.state_key]
        log.info("Resuming %s at step %d.", name, step)
        tell_other_code(code, own.get("code_sha256"), f"begun {name} phase", START_OVER)
        replay([row for row in folder.rows() if row["step"] <= step], loggers)
    try:
        with kept_memory():
            trainer.fit(model, data, ckpt_path=folder.last if resumed else None)
    except RuntimeError as error:
        lost = "gloo" in str(error) or isinstance(error, torch.distributed.DistBackendError)
        if not lost:
            raise
        reason = str(error).splitlines()[0]
        remedy = "repeat the command, which goes on from the last checkpoint"
        raise problem("all processes of the run", f"one that is gone ({reason})", remedy) from error
    record: dict[str, Any] = {
        "seconds": checkpoint.seconds,
        "code_sha256": checkpoint.code_sha256,
        "device": ", then ".join(checkpoint.devices),
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "stop_reason": "max_steps" if trainer.global_step == phase.max_steps else "max_epochs",
    }
    for callback in callbacks:
        if isinstance(callback, TargetRefresh | SelfTraining):
            record |= callback.record()
        elif isinstance(callback, History) and trainer.is_global_zero:
            callback.save(folder.path)
    if trainer.is_global_zero:
        record["losses"] = last_losses(folder.rows(), name)
        if name == "pretrain":
            record["reconstruction"] = model.reconstruction_error(data.samples, device)
        text = "%s: %d steps in %.0f s, stopped by %s."
        log.info(text, name, record["steps"], record["seconds"], record["stop_reason"])
    return record


def last_losses(rows: Sequence[Row], name: str) -> dict[str, float]:
    """Return the mean of each term, and of their sum, over a phase's last epoch.

    Example:
        >>> rows = [{"step": 5, "finetune/loss": 0.4}, {"step": 7, "finetune/loss": 0.3}]
        >>> last_losses([*rows, {"step": 7, "cluster/confidence": 0.9}], "finetune")
        {'loss': 0.3}
    """
    prefix = f"{name}/"
    last = next((row for row in reversed(rows) if f"{prefix}loss" in row), {})
    return {key.removeprefix(prefix): last[key] for key in last if key.startswith(prefix)}
