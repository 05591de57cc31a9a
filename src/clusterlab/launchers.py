"""Hydra's launchers and its Optuna, made to suit jobs of many hours, some of which are killed."""

import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, open_dict

from clusterlab.errors import problem
from clusterlab.sweep import Job

log = logging.getLogger(__name__)

NAMES = {
    "JoblibLauncher": "hydra/launcher=joblib",
    "LocalLauncher": "hydra/launcher=submitit_local",
    "SlurmLauncher": "hydra/launcher=submitit_slurm",
    "OptunaSweeper": "hydra/sweeper=optuna",
}
YEAR = 365 * 24 * 60  # minutes
REQUEUES = 100
ENDED = "its process ended"


def prepare(config: DictConfig) -> None:
    """Replace the defaults that would end a sweep early, and outlast jobs that are killed.

    Args:
        config: The sweep's composed config with its ``hydra`` node, which is changed.

    Raises:
        UserError: If jobs on several devices were to run where Lightning cannot start them, or the
            score that is to be maximised was to be minimised.
    """
    launcher, sweeper = (
        NAMES.get(node._target_.rpartition(".")[2], "")
        for node in (config.hydra.launcher, config.hydra.sweeper)
    )
    # Lightning starts the other ranks with the command of this process: in a worker that is the
    # launcher's own, and an Optuna of theirs would see no scores.
    alone = sweeper or (launcher if not launcher.endswith("slurm") else "")
    if alone and config.trainer.devices != 1:
        remedy = f"set trainer.devices=1, or leave out {alone}"
        raise problem(f"trainer.devices=1 with {alone}", config.trainer.devices, remedy)
    if sweeper:
        maximise(config.hydra.sweeper)
    if launcher.endswith("local"):
        replace_default(config, "timeout_min", 60, YEAR)
    elif launcher.endswith("slurm"):
        from clusterlab.slurm import watch_the_queue  # of an optional package

        replace_default(config, "max_num_timeout", 0, REQUEUES)
        watch_the_queue()
    if launcher.endswith("joblib"):
        outlast_workers()
    elif launcher:
        outlast_submitted_jobs()


def maximise(sweeper: DictConfig) -> None:
    """Let Optuna maximise, which minimises by default.

    Raises:
        UserError: If somebody asked for something else.
    """
    direction = sweeper.direction
    if isinstance(direction, str) and direction != "maximize":  # the default is no string
        raise problem("hydra.sweeper.direction=maximize", direction, "leave it out")
    with open_dict(sweeper):
        sweeper.direction = "maximize"


def replace_default(config: DictConfig, name: str, default: int, value: int) -> None:
    """Set what neither the command line nor a config has set for the launcher."""
    typed = any(text.startswith(f"hydra.launcher.{name}=") for text in config.hydra.overrides.hydra)
    if config.hydra.launcher[name] == default and not typed:
        with open_dict(config):
            config.hydra.launcher[name] = value


def returned(score: float) -> JobReturn:
    """Return what Hydra expects of a job that ended."""
    done = JobReturn(status=JobStatus.COMPLETED)
    done.return_value = score
    return done


def outlast_workers() -> None:
    """Let a sweep with joblib go on after one of its processes was killed.

    One takes all others with it. Their jobs are started again, and go on from their checkpoints; a
    job that was running at two such ends has failed.
    """
    from hydra_plugins.hydra_joblib_launcher import _core
    from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher

    def launch(
        self: Any, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        ends: Counter[str] = Counter()
        jobs = [Job(list(overrides)) for overrides in job_overrides]
        left, returns = jobs, {}
        while left:
            try:
                found = _core.launch(self, [job.overrides for job in left], initial_job_idx)
            except BrokenProcessPool:
                running = [job for job in left if job.read().get("state") == "running"]
                if not running:  # processes that cannot even start
                    raise
                ends.update({job.name for job in running})
                for job in running:
                    if ends[job.name] > 1:
                        job.bury(ENDED)
                    else:
                        job.forget()
                left = [job for job in left if job.read().get("state") not in ("done", "failed")]
                log.warning("A job's process ended. Going on with the %d jobs left.", len(left))
            else:
                returns = {job.name: value for job, value in zip(left, found, strict=True)}
                left = []
        return [returns.get(job.name) or returned(job.bury(ENDED)) for job in jobs]

    JoblibLauncher.launch = launch


def outlast_submitted_jobs() -> None:
    """Let a sweep with submitit wait for the other jobs after one was killed, which has failed."""
    from submitit import Job as Submitted

    results = Submitted.results

    def results_or_failure(self: Any) -> list[Any]:
        if self.exception() is None:
            found: list[Any] = results(self)
            return found
        job = Job(self.submission().args[0])
        return [returned(job.bury(f"{ENDED}; see {self.paths.stderr}"))]

    Submitted.results = results_or_failure  # type: ignore[method-assign]
