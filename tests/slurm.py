"""Run a sweep through a real Slurm, on one machine: ``make test-slurm``.

Needs root and Debian's packages slurm-wlm and munge. Starts munged, slurmctld and slurmd on
loopback in a folder of their own, sends two jobs through submitit, preempts one in the middle of
its training, and checks that it came back and ended with the weights of a run left alone.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
SETTINGS = (
    *("data=digits", "n_clusters=10", "figures=false", "checkpoint_interval=1", "trainer=cpu"),
    *("phases.pretrain.max_epochs=60", "phases.finetune.max_steps=200"),
    *("phases.finetune.tolerance=0", "phases.finetune.update_interval=50"),
)
CONF = """\
ClusterName=loopback
SlurmctldHost=localhost
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
NodeName=localhost CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def wait_for(what: str, condition: Callable[[], bool], seconds: float) -> None:
    """Look twice a second until something is so; fail after a while."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.5)


def say(*command: str) -> str:
    """Return what a command prints, whether it fails or not."""
    return subprocess.run(command, capture_output=True, text=True).stdout


@contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """Run a controller and a node on loopback."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, cpus=os.cpu_count()))
    os.environ["SLURM_CONF"] = str(conf)
    munged = ["munged", "--foreground", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munged += [f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed"]
    munged += [f"--log-file={folder}/munged.log", "--force"]
    daemons = [munged, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "localhost"]]
    started = []
    try:
        for command in daemons:
            log = (folder / f"{command[0]}.out").open("w")
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
            time.sleep(1)
        wait_for("the node", lambda: "idle" in say("sinfo", "-h", "-o", "%t"), 60)
        yield
    finally:
        say("scancel", "--user=root")
        for process in reversed(started):
            process.terminate()
            process.wait(30)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Return the final weights of a run."""
    found: dict[str, torch.Tensor] = torch.load(run / "finetune" / "weights.ckpt")["state_dict"]
    return found


def command(output: Path, *overrides: str) -> list[str]:
    """Return a command line of two seeds."""
    where = (f"output_dir={output}", "pretrained_dir=null", "seed=0,1")
    return [sys.executable, str(ROOT / "train.py"), "-m", *SETTINGS, *where, *overrides]


def main() -> None:
    """Compare a sweep through Slurm, one of its jobs preempted, with one in this process."""
    missing = [name for name in ("munged", "slurmctld", "slurmd") if not shutil.which(name)]
    if missing or os.getuid():
        sys.exit(f"Expected root and slurm-wlm and munge, got none of {missing}; install them.")
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="clusterlab-slurm-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        subprocess.run(command(folder / "alone"), check=True, stdout=subprocess.DEVNULL)
        with slurm(folder):
            launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=30"]
            launcher += ["hydra.launcher.cpus_per_task=1"]
            log = folder / "sweep.log"
            with log.open("w") as file:
                sweep = subprocess.Popen(
                    command(folder / "sweep", *launcher), stdout=file, stderr=subprocess.STDOUT
                )
                found: list[Path] = []

                def training() -> bool:
                    found[:] = (folder / "sweep").glob("*/*seed=1/pretrain/last.ckpt")
                    return bool(found)

                wait_for("a checkpoint of seed 1", training, 180)
                (job,) = {
                    line for line in say("squeue", "-h", "-r", "-o", "%i").split() if "_1" in line
                }
                say("scancel", "--signal=USR2", job)
                wait_for("the end of the sweep", lambda: sweep.poll() is not None, 400)
            text = log.read_text()
            assert sweep.returncode == 0, text
            assert "sacct" not in text, text
            for seed in (0, 1):
                (run,) = (folder / "sweep").glob(f"*/*seed={seed}")
                (alone,) = (folder / "alone").glob(f"*/*seed={seed}")
                resumed = (run / "train.log").read_text().count("Resuming pretrain at step")
                assert resumed == seed, (seed, resumed)
                one, other = weights(run), weights(alone)
                assert all(torch.equal(one[key], other[key]) for key in other), seed
                records = [json.loads((path / "result.json").read_text()) for path in (run, alone)]
                assert records[0]["metrics"] == records[1]["metrics"]
            print(
                f"{say('sinfo', '--version').strip()}: two jobs, {job} preempted and resumed, the"
            )
            print("weights of both those of runs left alone.")


if __name__ == "__main__":
    main()
