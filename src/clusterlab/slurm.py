"""Slurm without accounting: what submitit asks of ``sacct`` is asked of ``squeue``."""

import shutil
import subprocess

from submitit.slurm import slurm


class QueueWatcher(slurm.SlurmInfoWatcher):
    """Ask the queue how jobs are doing.

    Without accounting ``sacct`` fails: submitit then complains at every poll, and waits for ever
    for a job that was killed. The queue remembers an ended job for some minutes (``MinJobAge``).
    """

    def _make_command(self) -> list[str] | None:
        # One array job has one number before the underscore.
        asked = {job.split("_")[0] for job in self._registered - self._finished}
        columns = ["--noheader", "--array", "--states=all", "--format=%i|%T|%N"]
        return ["squeue", *columns, f"--jobs={','.join(sorted(asked))}"] if asked else None

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        """Read ``squeue``'s lines.

        Example:
            >>> QueueWatcher().read_info("7_0|RUNNING|node1")
            {'7_0': {'JobID': '7_0', 'State': 'RUNNING', 'NodeList': 'node1'}}
        """
        text = string if isinstance(string, str) else string.decode()
        lines = [line.split("|") for line in text.splitlines()]
        return {job: {"JobID": job, "State": s, "NodeList": n} for job, s, n in lines}


def watch_the_queue() -> None:
    """Replace submitit's watcher where this Slurm keeps no accounts."""
    if shutil.which("sacct") and subprocess.run(["sacct"], capture_output=True).returncode == 0:
        return
    slurm.SlurmJob.watcher = QueueWatcher(delay_s=60)
