"""Run what a config asks for: phases one after the other, then scores, figures and the record."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import seed_everything
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from clusterlab import figures
from clusterlab.centers import agreement
from clusterlab.checks import (
    build,
    build_one,
    check_choices,
    check_network,
    check_phases,
    check_places,
    check_precision,
    check_program,
    check_seed,
    check_trainer,
    check_vectors,
    check_weights,
    network_for,
    number_of_clusters,
    training_device,
)
from clusterlab.code import code_digest
from clusterlab.data.datamodule import ClusterData
from clusterlab.data.known import known_labels
from clusterlab.data.samples import Samples, digest
from clusterlab.defaults import fit_to_data, standardized
from clusterlab.distributed import is_rank_zero
from clusterlab.figures import BEFORE, PAGE, some_of
from clusterlab.files import log_to, read_json, settings_digest, write_arrays, write_json
from clusterlab.folders import PhaseFolder, load_network, opened, settings_of
from clusterlab.loggers import close, publish, write_csv
from clusterlab.models.base import DeepClustering
from clusterlab.networks import Autoencoder
from clusterlab.phases import START_OVER, tell_other_code, train_phases
from clusterlab.predict import write_predictions
from clusterlab.record import environment, evaluate
from clusterlab.results import CLUSTERS
from clusterlab.trouble import (
    change_trouble,
    classifier_trouble,
    size_trouble,
    spread_trouble,
    structure_trouble,
)

log = logging.getLogger(__name__)


def run(cfg: DictConfig, samples: Samples | None = None) -> dict[str, Any]:
    """Make the run that a config describes, or finish one that was started.

    Args:
        cfg: The composed config of ``conf/train.yaml`` with ``run_dir`` set.
        samples: The data, where they are in memory; ``None`` reads ``data.source``.

    Returns:
        The content of ``result.json``; empty on a rank other than 0.

    Raises:
        UserError: If config, data, checkpoint or folder are not what they must be.
    """
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))  # type: ignore[assignment]
    check_places(cfg)
    for name in [name for name, phase in cfg.phases.items() if phase is None]:
        del cfg.phases[name]  # a model's word that it has no such phase
    device = training_device(cfg.trainer)
    check_precision(cfg.trainer.precision, device)
    check_trainer(cfg.trainer)
    check_choices(cfg)
    check_program(cfg)
    check_seed(cfg.seed)
    check_weights(cfg.get("loss") or OmegaConf.create())
    if samples is None:
        samples = build_one(Samples, cfg.data.source)
    if not samples.are_images:
        check_vectors(cfg.model, cfg.phases)
    fit_to_data(cfg, samples)
    cfg.n_clusters = number_of_clusters(cfg.n_clusters, samples)
    told: dict[str, Tensor] = {}  # to models that learn from some labels
    named: dict[str, Sequence[str]] = {}
    if "labelled" in cfg.data:
        labelled, stratified = cfg.data.labelled, cfg.data.stratified
        known, names = known_labels(samples, labelled, stratified, cfg.n_clusters, cfg.seed)
        told["known"], samples = known, replace(samples, known=known)
        if names and (known >= 0).any():  # clusters stand for these classes, in this order
            named["class_names"] = names
    data = ClusterData(samples, cfg.data.batch_size, cfg.seed)
    check_phases(cfg.phases, cfg.model)
    seed_everything(cfg.seed, verbose=False)
    cfg.network = network_for(cfg.network, samples, standardized(cfg.data, samples))
    network = build_one(Autoencoder, cfg.network)
    model = build_one(DeepClustering, cfg.model, network=network, **told)
    check_network(network, samples, model.unit_length, bool(cfg.phases.get("pretrain")))
    if cfg.init_from is not None:
        load_network(Path(cfg.init_from), model)
    if not is_rank_zero():  # started by Lightning; rank 0 looks after the folder
        train_phases(cfg, model, data, Path(cfg.run_dir), device)
        return {}
    made_from: dict[str, Any] = {"data_sha256": samples.sha256}
    if samples.known is not None:
        made_from["known_sha256"] = digest(samples.known)
        made_from["n_known"] = int((samples.known >= 0).sum())
    with opened(cfg, made_from) as run_dir:
        result_file = run_dir / "result.json"
        if result_file.exists():
            result = read_json(result_file)
            if "error" not in result:
                log.info("Finished before: nothing to train.")
                made_by = result.get("code_sha256")
                tell_other_code(code_digest(cfg), made_by, "finished run", START_OVER)
                if cfg.figures and not (run_dir / PAGE).exists():
                    write_page(run_dir, samples)
                return result
        record = {
            "model": cfg.model_name,
            "data": samples.name,
            "seed": cfg.seed,
            "experiment": cfg.experiment_name,
            "asked": OmegaConf.to_container(cfg.asked, resolve=True),
            "n_samples": len(samples),
            "n_clusters": cfg.n_clusters,
            "labels_sha256": None if samples.y is None else digest(samples.y),
            **made_from,
            **named,
            **({"skipped": samples.skipped} if samples.skipped else {}),
            "settings_sha256": settings_digest(settings_of(cfg)),
            **environment(device, cfg),
        }
        config: Any = {"config": OmegaConf.to_container(cfg, resolve=True)}
        loggers: list[Logger] = [build(node) for node in cfg.logger.values()]
        try:
            with log_to(run_dir / "train.log"):
                shape = "x".join(map(str, samples.input_shape))
                what = f"{cfg.model_name} on {samples.name}, {len(samples)} samples of {shape}"
                where = f"{cfg.n_clusters} clusters, on {record['device']}, into {run_dir}"
                log.info("%s, %s", what, where)
                for logger in loggers:
                    logger.log_hyperparams(config["config"])
                record |= train_and_evaluate(cfg, model, data, run_dir, device, loggers, **named)
        except BaseException as error:
            close(loggers, "failed")
            if isinstance(error, Exception):
                with suppress(OSError):  # the error may be that nothing can be written
                    write_json(result_file, {**record, "error": str(error), **config})
            raise
        close(loggers, "success")
        record |= config
        write_json(result_file, record)
        if cfg.figures:
            write_page(run_dir, samples)
        return record


def write_page(run_dir: Path, samples: Samples) -> None:
    """Write a finished run's page; its plotting library is imported for no less."""
    from clusterlab import page

    page.write(run_dir, samples)


def train_and_evaluate(
    cfg: DictConfig,
    model: DeepClustering,
    data: ClusterData,
    run_dir: Path,
    device: torch.device,
    loggers: Sequence[Logger],
    class_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Train what is not trained yet, then score, store and draw the final state."""
    phases = train_phases(cfg, model, data, run_dir, device, loggers)
    samples = data.samples
    rows = [row for name in phases for row in PhaseFolder(run_dir / name).rows()]
    write_csv(run_dir / "metrics.csv", rows)

    z = model.embed_samples(samples, device)
    q = model.assign_samples(samples, z).cpu()
    z = z.cpu()
    arrays: dict[str, Any] = {
        "index": np.arange(len(q)),
        "label": q.argmax(1).numpy(),
        "q": q.numpy(),
        "z": z.numpy(),
    }
    if samples.files is not None:
        arrays["files"] = np.array(samples.files)
    write_arrays(run_dir / CLUSTERS, arrays)
    table = run_dir / "assignments.csv"
    write_predictions(table, arrays["label"], arrays["q"], samples.files, class_names)
    last = list(phases)[-1]
    some = some_of(len(samples), cfg.seed)
    start = None  # the embedding in which finetuning found its clusters
    if {"pretrain", "finetune"} <= phases.keys():
        PhaseFolder(run_dir / "pretrain").load(model, "pretrain")
        start = model.embed_samples(replace(samples, x=samples.x[some]), device).cpu()
        PhaseFolder(run_dir / last).load(model, last)
        write_arrays(run_dir / BEFORE, {"index": some.numpy(), "z": start.numpy()})
    scores = evaluate(z, q, samples.y, samples.known)
    mean_agreement, trained = None, any(phase["steps"] for phase in phases.values())
    if trained and len(some) >= 2 * cfg.n_clusters:
        found = agreement(z[some] if start is None else start, cfg.n_clusters, cfg.seed)
        mean_agreement = sum(found) / len(found)
    trouble = [
        *(spread_trouble(z, model.suspect) if trained else ()),
        *change_trouble(phases[last].get("label_change"), phases[last]["stop_reason"]),
        *classifier_trouble(phases[last].get("settled"), phases[last]["epochs"]),
        *structure_trouble(mean_agreement),
    ]
    for line in trouble:
        log.warning(line)
    scores["label_free"]["agreement"] = mean_agreement
    sizes = torch.tensor(scores["label_free"]["cluster_sizes"])
    scores["label_free"]["trouble"] = size_trouble(sizes, model.suspect) + trouble
    paths: dict[str, Path] = {}
    if cfg.figures:
        paths = figures.draw(run_dir / "figures", model, samples, some, start, z, q, rows, cfg)
    publish(loggers, scores, paths)
    return {
        **scores,
        "phases": phases,
        "seconds": sum(phase["seconds"] for phase in phases.values()),
    }
