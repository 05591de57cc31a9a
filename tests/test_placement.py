"""A GPU for each job: how they are divided, claimed and let go of, on a machine that has none."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

# A sweep of jobs that write down what CUDA would see, on a machine that says it has two GPUs. Each
# has a GPU until as many jobs as TOGETHER have had one too, for a minute at most.
PROGRAM = """
import os, sys, time
from pathlib import Path
import hydra, torch
from clusterlab import sweep
from clusterlab.files import config_folder

@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="train")
def job(cfg):
    sweep.Job([f"seed={cfg.seed}"]).take_place()
    begin = time.time()
    folder = Path(cfg.output_dir)
    (folder / f"{cfg.seed}.begun").touch()
    together = int(os.environ["TOGETHER"])
    while len(list(folder.glob("*.begun"))) < together and time.time() < begin + 60:
        time.sleep(0.1)
    time.sleep(0.5)
    told = f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {begin} {time.time()}"
    (folder / f"{cfg.seed}.txt").write_text(told)

if __name__ == "__main__":
    torch.cuda.device_count = lambda: 2
    job()
"""


def told(folder: Path) -> list[tuple[str, float, float]]:
    """Return the GPU and the begin and end of each job, by its seed."""
    lines = [path.read_text().split() for path in sorted(folder.glob("*.txt"))]
    return [(gpu, float(begin), float(end)) for gpu, begin, end in lines]


def overlap(a: tuple[str, float, float], b: tuple[str, float, float]) -> bool:
    return a[1] < b[2] and b[1] < a[2]


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def sweep(
    folder: Path, *overrides: str, together: int = 1
) -> tuple[list[tuple[str, float, float]], str]:
    command = [sys.executable, "program.py", "-m", f"output_dir={folder}", *overrides]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CUDA")}
    environment |= {"TMPDIR": str(folder), "TOGETHER": str(together)}  # there are the locks
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return told(folder), done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_no_two_jobs_on_one_gpu(swept: Path, launcher: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher")
    jobs, printed = sweep(swept, f"hydra/launcher={launcher}", "seed=0,1,2,3", together=2)
    assert {gpu for gpu, _, _ in jobs} == {"0", "1"}
    pairs = [(a, b) for i, a in enumerate(jobs) for b in jobs[:i]]
    assert not any(overlap(a, b) for a, b in pairs if a[0] == b[0])
    assert any(overlap(a, b) for a, b in pairs)
    if launcher == "joblib":
        assert "2 GPUs: 2 jobs at a time" in printed


@pytest.mark.slow
def test_jobs_share_a_gpu_if_asked(swept: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    asked = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=4", "jobs_per_gpu=2")
    jobs, printed = sweep(swept, *asked, "seed=0,1,2,3", together=4)
    assert sorted(gpu for gpu, _, _ in jobs) == ["0", "0", "1", "1"]
    assert "at a time" not in printed
    assert all(overlap(a, b) for a in jobs for b in jobs)


@pytest.mark.slow
def test_jobs_on_a_cpu_take_no_gpu(swept: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    jobs, _ = sweep(swept, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "trainer=cpu")
    assert [gpu for gpu, _, _ in jobs] == ["None"]


HOLDER = """
import os, time
from clusterlab.placement import take
for _ in range(2):  # the second job of a process keeps the first one's
    take(["GPU-a", "GPU-b"])
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
time.sleep(60)
"""


def test_a_killed_job_leaves_its_gpu_to_the_next(tmp_path: Path) -> None:
    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    started = [start() for _ in range(2)]
    try:
        taken = [process.stdout.readline().strip() for process in started if process.stdout]
        assert sorted(taken) == ["GPU-a", "GPU-b"]
        started.append(start())
        time.sleep(1)
        started[0].kill()
        assert started[2].stdout is not None
        assert started[2].stdout.readline().strip() == taken[0]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_sweeps_share_the_machine(tmp_path: Path) -> None:
    """The third finds both GPUs taken, and shares one as it was asked to."""
    program = (
        "from clusterlab.sweep import Job\n"
        "import os, time\n"
        "Job([]).take_place()\n"
        "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\n"
        "time.sleep(60)\n"
    )
    started, taken = [], []
    try:
        for name, places in (("one", ["a/1", "b"]), ("other", ["a/1", "b"]), ("two", ["b", "b"])):
            folder = tmp_path / name
            folder.mkdir()
            (folder / "sweep.json").write_text(json.dumps({"jobs": 2, "places": places}))
            environment = {**os.environ, "CLUSTERLAB_SWEEP": str(folder), "TMPDIR": str(tmp_path)}
            command = [sys.executable, "-c", program]
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
            started.append(process)
            assert process.stdout is not None
            taken.append(process.stdout.readline().strip())
        assert taken == ["a/1", "b", "b"]
        assert len(list(tmp_path.glob("clusterlab-*/*.lock"))) == 3
    finally:
        for process in started:
            process.kill()
            process.communicate()
