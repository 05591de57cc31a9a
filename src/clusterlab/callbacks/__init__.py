"""What happens around the steps of a phase."""

from clusterlab.callbacks.checkpoint import PhaseCheckpoint
from clusterlab.callbacks.cluster_init import ClusterInit
from clusterlab.callbacks.history import CenterHistory, EmbeddingHistory, History
from clusterlab.callbacks.progress import Progress
from clusterlab.callbacks.self_training import SelfTraining
from clusterlab.callbacks.step_limit import StepLimit
from clusterlab.callbacks.target_refresh import TargetRefresh

__all__ = [
    "CenterHistory",
    "ClusterInit",
    "EmbeddingHistory",
    "History",
    "PhaseCheckpoint",
    "Progress",
    "SelfTraining",
    "StepLimit",
    "TargetRefresh",
]
