"""``result.json``: what a run was, on what, and what came out."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from clusterlab.code import code_digest
from clusterlab.files import config_folder
from clusterlab.metrics import (
    SCORES,
    assignment_entropy,
    cluster_sizes,
    mean_confidence,
    score,
    silhouette,
)

CPUINFO = Path("/proc/cpuinfo")  # on Linux


def evaluate(z: Tensor, q: Tensor, y: Tensor | None, known: Tensor | None = None) -> dict[str, Any]:
    """Score a soft assignment with labels, where there are any, and without.

    Args:
        z: Embeddings, shape ``(N, d)``.
        q: Soft assignment, shape ``(N, K)``.
        y: Ground truth, shape ``(N,)``, or ``None``.
        known: Labels that training read, shape ``(N,)``, -1 elsewhere; ``None`` if it reads none.

    Returns:
        ``metrics`` (all ``None`` without labels), with known labels ``metrics_unlabelled``, the
        same of the other samples alone, and ``label_free``.
    """
    labels, n_clusters = q.argmax(1), q.shape[1]
    sizes = cluster_sizes(labels, n_clusters)
    scored = {"metrics": torch.ones(len(labels), dtype=torch.bool)}
    if known is not None:
        scored["metrics_unlabelled"] = known < 0
    scores: dict[str, dict[str, float | None]] = {}
    for name, rows in scored.items():
        scores[name] = dict.fromkeys(SCORES)
        if y is not None and rows.any():
            scores[name] |= score(labels[rows], y[rows], n_clusters)
    return {
        **scores,
        "label_free": {
            "silhouette": silhouette(z, labels),
            "confidence": mean_confidence(q),
            "entropy": assignment_entropy(q),
            "cluster_sizes": sizes.tolist(),
        },
    }


def environment(device: torch.device, cfg: DictConfig) -> dict[str, Any]:
    """Say what a config's run is made on and by: device, versions, revision, code."""
    packages = ("clusterlab", "torch", "lightning", "numpy", "scikit-learn", "hydra-core")
    return {
        "device": device_name(device),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "commit": commit(),
        "code_sha256": code_digest(cfg),
    }


def device_name(device: torch.device) -> str:
    """Return the name a reader would look up; for a CPU also its vectors and threads.

    A name such as "AMD EPYC" stands for several generations, of which one computes twice as fast
    as another: their vectors, AVX2 or AVX512, tell these apart, and AMX, which multiplies in bf16,
    two kinds of Xeon.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    model = platform.processor() or platform.machine()
    vectors = torch.backends.cpu.get_cpu_capability()
    if CPUINFO.exists():
        lines = CPUINFO.read_text().splitlines()
        names = [line for line in lines if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
        if any("amx_bf16" in line.split() for line in lines):
            vectors += " and AMX"
    return f"{model}, {vectors}, {threads} thread{'s' if threads > 1 else ''}"


def commit() -> str | None:
    """Return the last revision that changed code or configs, ``-dirty`` appended if edited since.

    One that changed only records or documents does not count: runs before and after it are made by
    the same code, and belong into one mean. ``None`` for a package that was installed rather than
    checked out.
    """
    git = ("git", "-C", str(Path(__file__).parent))
    code = ("--", ".", str(config_folder()))
    try:
        # An installed copy may lie inside some other repository: ask whether this file is tracked.
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", __file__], check=True, capture_output=True
        )
        last = [*git, "log", "-1", "--format=%H", *code]
        edited = [*git, "status", "--porcelain", "--untracked-files=no", *code]
        revision, status = (
            subprocess.run(command, check=True, capture_output=True) for command in (last, edited)
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision.stdout.decode().strip() + ("-dirty" if status.stdout.strip() else "")
