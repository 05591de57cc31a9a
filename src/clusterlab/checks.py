"""The border: what a user can get wrong in a config, said in one line each."""

import json
import logging
import math
from importlib import import_module
from typing import Any, TypeVar

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from clusterlab.callbacks import ClusterInit
from clusterlab.data.augment import RandomAffine, Views
from clusterlab.data.samples import Samples, as_float
from clusterlab.errors import UserError, problem
from clusterlab.files import config_folder
from clusterlab.metrics import SCORES
from clusterlab.networks import Autoencoder
from clusterlab.signatures import check_types

log = logging.getLogger(__name__)
T = TypeVar("T")
WHERE = "correct them, or see where with HYDRA_FULL_ERROR=1"

# What a user of Lightning may give its trainer and each phase has of its own, and where that is.
LENGTH = "set phases.NAME.max_epochs or phases.NAME.max_steps"
OF_PHASES = {
    **dict.fromkeys(("max_epochs", "max_steps", "max_time", "min_epochs", "min_steps"), LENGTH),
    "callbacks": "add them to phases.NAME.callbacks",
    "logger": "choose one with logger=NAME",
    "enable_checkpointing": "set checkpoint_interval, the seconds from one to the next",
}


def build(node: Any, **kwargs: Any) -> Any:
    """Instantiate a config node.

    Raises:
        UserError: If a value is not of the type that its class says, as its class raised it, or in
            place of what a class raises that does not check its arguments.
    """
    if isinstance(node, DictConfig):
        check_types(node)
    try:
        return instantiate(node, _convert_="object", **kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, ImportError):
            raise not_there(cause) from None
        raise problem("settings that their class takes", error, WHERE) from error


def build_one(kind: type[T], node: DictConfig, **kwargs: Any) -> T:
    """Instantiate a config node that may be of a user's own making.

    Raises:
        UserError: As ``build``, or it is not of the kind.
    """
    made = build(node, **kwargs)
    if not isinstance(made, kind):
        expected = f"a {kind.__name__} from {node._target_}"
        remedy = f"make it one of {kind.__module__}.{kind.__name__}, or of a class derived from it"
        raise problem(expected, f"a {type(made).__name__}", remedy)
    return made


def class_of(node: DictConfig) -> type:
    """Return the class that a config node names.

    Raises:
        UserError: If there is none.
    """
    module, _, name = node._target_.rpartition(".")
    try:
        found: type = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise not_there(error) from None
    return found


def not_there(error: Exception) -> UserError:
    """Make the line for a class that cannot be imported, or what it needs."""
    remedy = "install what is missing, for the loggers with pip install '.[wandb,tensorboard]', "
    remedy += "or name the folder of your own code in PYTHONPATH"
    return problem("all that the config names to be there", error, remedy)


def check_seed(seed: Any) -> None:
    """Refuse a seed that is not one.

    Raises:
        UserError: If it is not an integer of 0..2^32 - 1.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise problem("a seed from 0 to 2^32 - 1", f"{seed!r}", "set seed=0")


SWITCH = (True, False)
CHOICES = {
    "restart": SWITCH,  # restart=fasle would start over
    "figures": SWITCH,
    "progress": SWITCH,
    "data.stratified": SWITCH,
    "data.standardize": ("auto", *SWITCH),
    "data.augment": ("auto", None),
    "optimize": (
        *("silhouette", "confidence", "entropy", "agreement"),
        *(f"metrics.{name}" for name in SCORES),
    ),
}


def check_choices(cfg: DictConfig) -> None:
    """Refuse a value that is none of the few that there are.

    Raises:
        UserError: Naming the first.
    """
    for key, choices in CHOICES.items():
        value = OmegaConf.select(cfg, key, default=choices[0])
        if value not in choices:
            words = [json.dumps(choice).strip('"') for choice in choices]
            raise problem(f"{' or '.join(words)} as {key}", f"{value!r}", f"set {key}={words[0]}")


def check_places(cfg: DictConfig) -> None:
    """Refuse a config of a user's own whose values Hydra put under its group's name.

    Those of an experiment or a sweep nobody reads there: the run would be another, without a word.

    Raises:
        UserError: Naming the line that the file lacks.
    """
    misplaced = {
        "experiment": "experiment" in cfg,
        "sweep": "sweep" in cfg,
        "model": "model" in cfg.model or "model_name" in cfg.model,
    }
    for group, wrong in misplaced.items():
        if wrong:
            expected = f"the first line of the file that {group}= names to be # @package _global_"
            raise problem(expected, f"its values under {group}", "put that line before all others")


def check_program(cfg: DictConfig) -> None:
    """Refuse values that say how to run and not what.

    Raises:
        UserError: Naming the first.
    """
    seconds, jobs = cfg.checkpoint_interval, cfg.jobs_per_gpu
    if not isinstance(seconds, int | float) or not seconds >= 0:
        remedy = "set checkpoint_interval=10"
        raise problem("a checkpoint_interval of seconds from 0 on", f"{seconds!r}", remedy)
    if not isinstance(jobs, int) or jobs < 1:
        raise problem("jobs_per_gpu from 1 on", f"{jobs!r}", "set jobs_per_gpu=1")


def check_weights(loss: DictConfig) -> None:
    """Refuse a weight of a loss that none can have.

    Args:
        loss: The loss' config: weights, and nodes to build.

    Raises:
        UserError: Naming the first that is not a finite number from 0 on.
    """
    for name in map(str, loss):
        weight = loss[name]
        if isinstance(weight, DictConfig):
            continue
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= weight < math.inf:
            remedy = f"set loss.{name}, or put what is no weight under model"
            raise problem(f"a weight from 0 on as loss.{name}", f"{weight!r}", remedy)


def check_phases(phases: DictConfig, model: DictConfig) -> None:
    """Refuse phases that could never start or never end, and build their callbacks once.

    Args:
        phases: The phases' configs.
        model: The model's.

    Raises:
        UserError: If a limit or a callback's argument is out of range, or what it needs is not
            there, or an augmentation is of the kind that the model does not read; the last phase's
            too, rather than after hours of the first.
    """
    compares_views = getattr(class_of(model), "compares_views", False)
    for name in map(str, phases):
        phase = phases[name]
        if not phase:  # nothing is trained in it
            continue
        limits = {key: phase[key] for key in ("max_epochs", "max_steps")}
        for key, limit in limits.items():
            if not isinstance(limit, int) or (limit < 1 and limit != -1):
                raise problem(
                    "a limit of 1 or more, or -1 for none", limit, f"set phases.{name}.{key}"
                )
        if set(limits.values()) == {-1}:
            raise problem(
                f"a limit for {name}",
                "max_epochs and max_steps of -1",
                f"set phases.{name}.max_steps=20000",
            )
        optimizer = build(phase.optimizer)
        try:  # on a parameter of its own: before hours are spent in the phases before
            optimizer([torch.nn.Parameter(torch.zeros(1))])
        except (TypeError, ValueError) as error:
            remedy = f"correct phases.{name}.optimizer"
            raise problem(f"an optimizer for {name}", error, remedy) from error
        callbacks, augment = build(phase.callbacks).values(), build(phase.get("augment"))
        group = f"augment@phases.{name}.augment"
        if isinstance(augment, Views) and not compares_views:
            got = "views beside them, which the method does not compare"
            raise problem(f"images to change in {name}", got, f"set {group}=affine")
        # A method of one's own may compare views in one phase and not in another.
        if isinstance(augment, RandomAffine) and compares_views and model.get("consistency", 0) > 0:
            remedy = f"set {group}=views, or loss.consistency=0"
            raise problem(f"views to compare in {name}", "images that are changed", remedy)
        starts = [c.consistent_starts for c in callbacks if isinstance(c, ClusterInit)]
        if any(starts) and not isinstance(augment, RandomAffine):
            remedy = f"set {group}=affine, or consistent_starts=0"
            raise problem("an augmentation to choose a start by", "none", remedy)


def number_of_clusters(asked: Any, samples: Samples) -> int:
    """Return K: what was asked for, else the number of classes of labelled data.

    Raises:
        UserError: If neither is there, or K does not fit the data.
    """
    n_clusters = samples.n_classes if asked is None else asked
    if n_clusters is None:
        raise problem(
            f"the number of clusters for the unlabelled data '{samples.name}'",
            "none",
            "set n_clusters=10",
        )
    if not isinstance(n_clusters, int) or not 2 <= n_clusters <= len(samples):
        raise problem(
            f"n_clusters from 2 to the {len(samples)} samples of {samples.name}",
            n_clusters,
            "set n_clusters",
        )
    return n_clusters


def network_for(node: DictConfig, samples: Samples, standardize: bool = False) -> DictConfig:
    """Return a network's config with what only the data knows, of one that takes the data.

    Convolutions have no use for vectors: ``network=mlp`` then takes their place.

    Args:
        node: The network's config as it was asked for, part of a run's config.
        samples: The data.
        standardize: Whether a network that has a scale sees them with mean 0 and deviation 1.

    Raises:
        UserError: If a setting is not of its type.
    """
    if not samples.are_images and getattr(class_of(node), "images_only", False):
        log.info("Samples are vectors: network=mlp takes the place of %s.", node._target_)
        mlp = OmegaConf.load(config_folder() / "network" / "mlp.yaml")
        assert isinstance(mlp, DictConfig)
        mlp._set_parent(node._get_parent())
        mlp.embedding_dim = node.embedding_dim
        node = mlp
    node.input_shape = list(samples.input_shape)
    scaled = "scale" in node
    if scaled and node.scale is None:
        node.scale = 1.0 if standardize else samples.unit_scale()
    check_types(node)
    if scaled and standardize:
        mean, deviation = samples.mean_and_deviation()
        with open_dict(node):
            node.shift, node.scale = mean, node.scale / deviation
        log.info("Standardised: the network sees %.3g (x - %.3g).", node.scale, mean)
    return node


def check_network(
    network: Autoencoder, samples: Samples, unit_length: bool = False, trained: bool = True
) -> None:
    """Let a network, which may be a user's own, embed and give back two samples.

    Args:
        network: On the CPU.
        samples: The data.
        unit_length: Whether embeddings must have length 1.
        trained: Whether a phase trains its weights and nothing else, as pretraining does.

    Raises:
        UserError: If it cannot, or gives back other shapes, which a loss might broadcast, or
            embeddings of another length, or has no weights to train.
    """
    x, name = as_float(samples.x[:2].clone()), type(network).__name__
    if trained and not any(weights.requires_grad for weights in network.parameters()):
        remedy = "set network=cae or mlp, or model=kmeans or spectral, which train none"
        raise problem("a network with weights to train", f"{name}, which has none", remedy)
    trains = network.training
    try:
        with torch.no_grad():
            z, x_hat = network.eval()(x)
    except (RuntimeError, TypeError, ValueError) as error:
        expected = f"layers of {name} that take samples of shape {tuple(x.shape[1:])}"
        raise problem(expected, f"the error {error}", WHERE) from error
    network.train(trains)
    embedded = (len(x), network.embedding_dim)
    outputs = {"embeddings": (z, embedded), "reconstructions": (x_hat, x.shape)}
    for what, (values, shape) in outputs.items():
        if values.shape != shape:
            expected = f"{what} of shape {tuple(shape[1:])} from {name}"
            remedy = "correct its layers, or its embedding_dim"
            raise problem(expected, tuple(values.shape[1:]), remedy)
    length = float(z.norm(dim=1).max())
    if unit_length and abs(length - 1) > 1e-3:
        remedy = "set network=residual or residual_small, or normalize in encode as these do"
        raise problem(f"embeddings of length 1 from {name}", f"{length:.3g}", remedy)


def check_vectors(model: DictConfig, phases: DictConfig) -> None:
    """Refuse a method that learns from images, and phases that change them, for data of vectors.

    Raises:
        UserError: Naming the method, else the first of the phases.
    """
    method = class_of(model)
    if getattr(method, "images_only", False):
        raise problem(f"images for {method.__name__}", "vectors", "set model=cdc, dec or idec")
    for name in map(str, phases):
        if phases[name] and phases[name].get("augment"):
            remedy = f"add ~augment@phases.{name}.augment to the command"
            raise problem(f"images to augment in {name}", "vectors", remedy)


def training_device(trainer: DictConfig) -> torch.device:
    """Return the device that a trainer config asks for.

    Raises:
        UserError: If it is unknown, or there are fewer.
    """
    count = torch.cuda.device_count()
    available = {
        # A CPU is one device, or as many processes as a strategy for several is asked to start.
        "cpu": 1 if trainer.strategy == "auto" else 64,
        "gpu": count,
        "cuda": count,
        "mps": int(torch.backends.mps.is_available()),
    }
    accelerator = trainer.accelerator
    if accelerator == "auto":
        accelerator = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if accelerator not in available:
        raise problem(
            f"a device of {', '.join(['auto', *available])}",
            f"'{accelerator}'",
            "set trainer.accelerator=cpu",
        )
    if not available[accelerator]:
        raise problem(
            f"a device of kind '{accelerator}'",
            "a machine or a PyTorch without one",
            "set trainer=cpu",
        )
    devices = trainer.devices
    if not isinstance(devices, int) or not 1 <= devices <= available[accelerator]:
        raise problem(
            f"trainer.devices from 1 to {available[accelerator]} on '{accelerator}'",
            devices,
            "set trainer.devices=1, or trainer=ddp for several CPU processes",
        )
    return torch.device("cuda" if accelerator == "gpu" else accelerator)


def check_trainer(trainer: DictConfig) -> None:
    """Refuse in a trainer's config what each phase has of its own.

    Raises:
        UserError: If it has one of ``OF_PHASES``.
    """
    for name, remedy in OF_PHASES.items():
        if name in trainer:
            expected = "a trainer's config without what its phases decide"
            raise problem(expected, f"trainer.{name}={trainer[name]}", remedy)


def check_precision(precision: Any, device: torch.device) -> None:
    """Refuse a precision that no loss was written for, and say where bf16 is the slower choice.

    That is on a CPU whose vectors cannot multiply it. Measured on one with AVX2: DCEC, IDCEC and
    CDC take 6 to 18 times as long as in float32.

    Args:
        precision: The trainer's.
        device: Where it trains.

    Raises:
        UserError: If it is not one of the two.
    """
    if precision not in ("32-true", "bf16-mixed"):
        got, remedy = f"'{precision}'", "set trainer.precision=32-true"
        raise problem("a precision of 32-true or bf16-mixed", got, remedy)
    capability = torch.backends.cpu.get_cpu_capability()
    if (precision, device.type, capability) == ("bf16-mixed", "cpu", "AVX2"):
        text = "On a CPU with AVX2 bf16 takes several times as long: %s is faster."
        log.warning(text, "trainer.precision=32-true")
