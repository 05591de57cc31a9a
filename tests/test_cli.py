"""The command line as a user meets it: real processes, what they print, leave behind and return."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from clusterlab.cli import run_name, settle
from clusterlab.errors import UserError
from clusterlab.files import PATHS
from conftest import LITTLE, Command, Commands

ROOT = Path(__file__).parents[1]
Files = set[str]


def files(folder: Path) -> Files:
    """Return all files and folders below a folder, hidden ones too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refusal(command: Command, code: int = 1) -> str:
    """Assert that a command ended with the one line for users, and return it."""
    assert command.code == code, command.stderr
    assert "Traceback" not in command.stdout + command.stderr
    lines = [line for line in command.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, command.stderr
    assert re.fullmatch(r"Error: Expected .+, got .+; .+\.", lines[0]), lines[0]
    assert not command.stdout  # no table
    return lines[0]


def result(run_dir: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run_dir / "result.json").read_text())
    return record


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty folder to run in: what a command leaves there, it left behind."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def do(commands: Commands, little_npz: Path, work: Path) -> Callable[..., Command]:
    """Run a little run in ``work``; without ``run_dir`` below ``work/runs``, as a user's does."""

    def do(*overrides: str | Path, **kwargs: Any) -> Command:
        options = [option for option in overrides if option == "-m"]  # Hydra wants it first
        values = [value for value in overrides if value != "-m"]
        arguments = [*options, *LITTLE, f"data.path={little_npz}", *values]
        return commands.run(*arguments, cwd=work, **kwargs)

    return do


@pytest.fixture(scope="module")
def finished(
    little_npz: Path, tmp_path_factory: pytest.TempPathFactory, _commands: Commands
) -> Path:
    """A finished run's folder; copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    _commands.folder = folder
    command = _commands.run(
        *LITTLE, f"data.path={little_npz}", f"output_dir={folder}", f"run_dir={folder / 'run'}"
    )
    assert command.code == 0, command.stderr
    return folder / "run"


# Hydra's part


def test_cfg_job_prints_the_config(commands: Commands, work: Path) -> None:
    command = commands.run("--cfg", "job", "loss.gamma=0.25", cwd=work)
    assert command.code == 0, command.stderr
    assert "gamma: 0.25" in command.stdout
    assert "_target_: clusterlab.models.dcec.DCEC" in command.stdout
    assert files(work) == set()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("modle=dcec", "Could not override 'modle'"),
        ("loss.gama=1", "Key 'gama' is not in struct"),
        ("phases.finetune.update_intervall=1", "Key 'update_intervall' is not in struct"),
        ("model=dcce", "Could not find 'model/dcce'"),
        ("data=upsp", "Could not find 'data/upsp'"),
        ("experiment=none_such", "Could not find 'experiment/none_such'"),
    ],
)
def test_mistyped_override(commands: Commands, work: Path, override: str, expected: str) -> None:
    command = commands.run(override, cwd=work)
    assert command.code == 1
    assert expected in command.stderr
    assert "Traceback" not in command.stderr
    assert "Error: " not in command.stderr
    assert len(command.stderr.splitlines()) < 40  # one screen
    assert not command.stdout
    assert files(work) == set()


def test_leaving_out_what_another_config_chose(commands: Commands, work: Path) -> None:
    command = commands.run("augment@phases.finetune.augment=null", cwd=work)
    assert command.code == 1
    said = "Error: Expected the name of a config in conf/augment, got null; "
    assert command.stderr == f"{said}set phases.finetune.augment=null.\n"


def test_train_py(little_npz: Path, work: Path) -> None:
    """The script itself, in an interpreter of its own: the config, a typing error, a refusal."""

    def train(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            cwd=work,
            capture_output=True,
            text=True,
            check=False,
        )

    shown = train("--cfg", "job", "seed=7")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "seed: 7" in shown.stdout
    typo = train("sede=7")
    assert (typo.returncode, typo.stdout) == (1, "")
    assert "Could not override 'sede'" in typo.stderr
    assert "Traceback" not in typo.stderr
    refused = train("data=npz", f"data.path={little_npz}", "n_clusters=1", "data.batch_size=40")
    assert (refused.returncode, refused.stdout) == (1, "")
    lines = [line for line in refused.stderr.splitlines() if line.startswith("Error: Expected ")]
    assert len(lines) == 1
    assert "Traceback" not in refused.stderr
    assert files(work) == set()


def test_quick_answers_do_not_import_torch() -> None:
    code = "import sys, clusterlab.cli; print(*({'torch', 'lightning'} & sys.modules.keys()))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == ""


# Bad input: values


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("n_clusters=1", "n_clusters from 2 to the 200 samples of little, got 1;"),
        ("n_clusters=0", "got 0;"),
        ("n_clusters=-3", "got -3;"),
        ("n_clusters=201", "got 201;"),
        ("n_clusters=abc", "got abc;"),
        ("n_clusters=2.5", "got 2.5;"),
        ("data.batch_size=0", "a batch size from 1 to the 200 samples of little, got 0;"),
        ("data.batch_size=201", "got 201;"),
        ("data.batch_size=2.5", "got 2.5;"),
        ("data.batch_size=abc", "got abc;"),
        ("phases.finetune.update_interval=0", "an update interval of at least 1 step, got 0;"),
        ("phases.finetune.update_interval=-1", "got -1;"),
        (
            "phases.finetune.update_interval=2.5",
            "number as phases.finetune.update_interval, got 2.5;",
        ),
        ("phases.finetune.tolerance=-0.1", "a tolerance in [0, 1), got -0.1;"),
        ("phases.finetune.tolerance=1.5", "got 1.5;"),
        ("phases.finetune.tolerance=abc", "a number as phases.finetune.tolerance, got 'abc';"),
        ("phases.finetune.max_steps=0", "got 0; set phases.finetune.max_steps"),
        ("phases.finetune.max_steps=-1", "a limit for finetune, got max_epochs and max_steps of"),
        ("phases.pretrain.max_epochs=abc", "got abc; set phases.pretrain.max_epochs"),
        ("phases.pretrain.max_epochs=-1", "a limit for pretrain, got max_epochs and max_steps of"),
        ("phases.pretrain.optimizer.lr=-1", "an optimizer for pretrain, got Invalid learning rate"),
        ("phases.finetune.optimizer.lr=abc", "correct phases.finetune.optimizer."),
        ("loss.gamma=abc", "a weight from 0 on as loss.gamma, got 'abc';"),
        ("loss.gamma=-0.1", "got -0.1;"),
        ("loss.gamma=nan", "got nan;"),
        ("loss.gamma=inf", "got inf;"),
        ("loss.reconstruction=null", "got None; set loss.reconstruction"),
        ("loss.gamma=true", "got True;"),
        ("model.n_init=abc", "a whole number as model.n_init, got 'abc';"),
        ("model.n_init=0", "starts of k-means, 1 or more, got 0;"),
        ("network.embedding_dim=2.5", "got 2.5; set network.embedding_dim."),
        ("network.filters=[8,x,8]", "a list of whole numbers as network.filters, got [8, 'x', 8];"),
        ("network.filters=[-1,8,8]", "or see where with HYDRA_FULL_ERROR=1."),
        ("restart=fasle", "true or false as restart, got 'fasle'; set restart=true."),
        ("figures=2", "true or false as figures, got 2;"),
        (
            "data.augment=affine",
            "auto or null as data.augment, got 'affine'; set data.augment=auto",
        ),
        ("optimize=silhouete", "silhouette or confidence or"),
        ("output_dir=2024", """got 2024; quote it, as in "output_dir='2024'"."""),
        ("pretrained_dir=2024_11", "a folder or file as pretrained_dir, got 202411;"),
        ("init_from=1e3", "as init_from, got 1000.0;"),
        ("data.path=2024", """got 2024; quote it, as in "data.path='2024'"."""),
        ("+data.stratified=abc", "true or false as data.stratified, got 'abc';"),
        ("seed=-1", "a seed from 0 to 2^32 - 1, got -1;"),
        ("seed=abc", "got 'abc';"),
        ("trainer.accelerator=abacus", "a device of auto, cpu, gpu, cuda, mps, got 'abacus';"),
        ("trainer=gpu", "a device of kind 'gpu', got a machine or a PyTorch without one;"),
        ("trainer.devices=5", "trainer.devices from 1 to 1 on 'cpu', got 5;"),
        ("trainer.devices=0", "got 0;"),
        ("trainer.precision=16-true", "a precision of 32-true or bf16-mixed, got '16-true';"),
        ("trainer.precision=32", "got '32'; set trainer.precision=32-true"),
        ("+trainer.max_epochs=3", "got trainer.max_epochs=3; set phases.NAME.max_epochs or"),
        ("+trainer.enable_checkpointing=false", "set checkpoint_interval, the seconds from"),
        ("jobs_per_gpu=0", "jobs_per_gpu from 1 on, got 0;"),
        ("jobs_per_gpu=abc", "got 'abc';"),
        ("checkpoint_interval=abc", "a checkpoint_interval of seconds from 0 on, got 'abc';"),
        ("checkpoint_interval=-1", "got -1;"),
    ],
)
def test_bad_value(do: Callable[..., Command], work: Path, override: str, expected: str) -> None:
    command = do(override, CUDA_VISIBLE_DEVICES="")  # no GPU, wherever this runs
    assert expected in refusal(command)
    assert files(work) == set()


def test_where_a_setting_is_refused_can_be_seen(do: Callable[..., Command]) -> None:
    asked = do("network.filters=[-1,8,8]", HYDRA_FULL_ERROR="1")
    assert asked.code == 1
    assert "Traceback" in asked.stderr
    assert "clusterlab/networks/conv.py" in asked.stderr  # the line of code that it came to


# Bad input: data

X = np.linspace(0, 1, 60 * 64, dtype=np.float32).reshape(60, 8, 8)
Y = np.arange(60) % 5


def spoilt(value: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        x = X.copy()
        x[7, 3, 3] = value
        np.savez(path, x=x, y=Y)

    return write


def corrupt(path: Path) -> None:
    np.savez(path, x=X, y=Y)
    content = bytearray(path.read_bytes())
    content[2000:3000] = bytes(1000)
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    np.savez(path, x=X, y=Y)
    path.write_bytes(path.read_bytes()[:5000])


def without_arrays(path: Path) -> None:
    with zipfile.ZipFile(path, "w"):
        pass


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (spoilt(np.nan), "got 1 NaN or infinite values, first in sample 7;"),
        (spoilt(-np.inf), "got 1 NaN or infinite values, first in sample 7;"),
        (lambda path: path.write_bytes(b""), "got 0 bytes of no npz;"),
        (lambda path: None, "got nothing there;"),
        (lambda path: path.mkdir(), "got a folder;"),
        (corrupt, "Expected plain arrays in "),
        (cut_off, "bytes of no npz;"),
        (without_arrays, "got no arrays;"),
        (lambda path: np.savez(path, images=X, y=Y), "Expected an array x in "),
        (lambda path: np.savez(path, x=X[:0]), "Expected at least one sample in "),
        (lambda path: np.savez(path, x=X.astype(object)), "Expected plain arrays in "),
        (lambda path: np.savez(path, x=X[0, 0]), "got shape (8,);"),
        (lambda path: np.savez(path, x=X * 255), "Expected x in [0, 1] in "),
        (lambda path: np.savez(path, x=X, y=Y[:59]), "Expected y of shape (60,) in "),
        (lambda path: np.savez(path, x=X, y=Y / 2), "Expected whole numbers as y in "),
        (lambda path: np.savez(path, x=X[:, 1:, 1:], y=Y), "got 7x7;"),
    ],
)
def test_bad_npz(
    do: Callable[..., Command],
    work: Path,
    tmp_path: Path,
    write: Callable[[Path], None],
    expected: str,
) -> None:
    write(tmp_path / "bad.npz")
    assert expected in refusal(do(f"data.path={tmp_path / 'bad.npz'}"))
    assert files(work) == set()


def test_data_path_missing(commands: Commands, work: Path) -> None:
    command = commands.run("data=npz", "n_clusters=5", cwd=work)
    assert "data.path" in refusal(command)
    assert files(work) == set()


def test_n_clusters_missing_without_labels(
    do: Callable[..., Command], work: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "bare.npz", x=X)
    line = refusal(do(f"data.path={tmp_path / 'bare.npz'}", "n_clusters=null"))
    assert "the unlabelled data 'bare', got none; set n_clusters=10." in line
    assert files(work) == set()


@pytest.mark.parametrize("size", ["0", "abc", "null"])
def test_a_bad_batch_size_of_own_data(
    commands: Commands, work: Path, little_npz: Path, size: str
) -> None:
    asked = ("data=npz", f"data.path={little_npz}", f"data.batch_size={size}")
    line = refusal(commands.run(*asked, cwd=work))
    assert "Expected a batch size from 1 to the 200 samples of little, got" in line
    assert line.endswith("set data.batch_size.")


def image(path: Path, height: int = 16, width: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width), 7, np.uint8)).save(path)


def broken(folder: Path) -> None:
    image(folder / "a.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:50])


def small(folder: Path) -> None:
    for name in "abc":
        image(folder / f"{name}.png", 16, 5)


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        (lambda folder: (folder / "notes.txt").touch(), "got none among 1 files;"),
        (lambda folder: folder.rmdir(), "got nothing there;"),
        (broken, "b.png, got the error "),
        (small, "Expected images of at least 8x8 pixels, got 16x5;"),
    ],
)
def test_bad_folder(
    commands: Commands,
    work: Path,
    tmp_path: Path,
    fill: Callable[[Path], None],
    expected: str,
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    fill(folder)
    command = commands.run(
        "data=folder", f"data.path={folder}", "n_clusters=2", "data.batch_size=2", cwd=work
    )
    assert expected in refusal(command)
    assert files(work) == set()


NO_NETWORK = """
import socket
def refuse(*args, **kwargs):
    raise socket.gaierror(-3, "Temporary failure in name resolution")
socket.getaddrinfo = refuse
"""


@pytest.mark.parametrize(("data", "file"), [("usps", "usps.npz"), ("mnist_test", "mnist.npz")])
def test_no_network(commands: Commands, work: Path, tmp_path: Path, data: str, file: str) -> None:
    root = tmp_path / "root"
    command = commands.run(f"data={data}", f"data.root={root}", cwd=work, before=NO_NETWORK)
    line = refusal(command)
    assert f"Expected the file {root / file}, got " in line
    assert f"put the prepared file at {root / file}, or run again where http" in line
    assert files(work) == set()
    assert {name for name in files(root) if not name.endswith(".lock")} == set()


# Bad input: checkpoints and folders


def npz_named_like_a_checkpoint(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=X)


@pytest.mark.parametrize(
    ("make", "overrides", "expected"),
    [
        (None, ["n_clusters=4"], "Expected weights '"),
        (None, ["network.filters=[4,8,15]"], "Expected weights '"),
        (lambda path: None, [], "Expected a checkpoint, got no file "),
        (lambda path: path.write_bytes(b""), [], "a file that torch cannot read, "),
        (npz_named_like_a_checkpoint, [], "a file that torch cannot read, "),
        (lambda path: torch.save([1], path), [], "another kind of file, "),
        (lambda path: torch.save({"state_dict": {}}, path), [], "got none;"),
    ],
)
def test_bad_init_from(
    do: Callable[..., Command],
    work: Path,
    tmp_path: Path,
    finished: Path,
    make: Callable[[Path], None] | None,
    overrides: list[str],
    expected: str,
) -> None:
    path = tmp_path / "other.ckpt" if make else finished / "pretrain" / "weights.ckpt"
    if make:
        make(path)
    assert expected in refusal(do(f"init_from={path}", *overrides))
    assert files(work) == set()


def test_init_from_another_run(do: Callable[..., Command], work: Path, finished: Path) -> None:
    """What the refusals above refuse works with the right file."""
    command = do(f"init_from={finished / 'pretrain' / 'weights.ckpt'}", "run_dir=run")
    assert command.code == 0, command.stderr
    record = result(work / "run")
    assert record["phases"]["pretrain"]["stop_reason"] == "init_from"
    assert record["metrics"] == result(finished)["metrics"]


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("pretrain", "a checkpoint of phase 'finetune', got one of phase 'pretrain';"),
        ("model", "a checkpoint of DCEC, got one of Other;"),
        ("shape", "weights 'centers' of shape (5, 5), got (4, 5);"),
    ],
)
def test_checkpoint_of_another_phase_model_or_shape(
    do: Callable[..., Command], work: Path, finished: Path, phase: str, expected: str
) -> None:
    run_dir = work / "run"
    shutil.copytree(finished, run_dir)
    (run_dir / "result.json").unlink()
    path = run_dir / "finetune" / "weights.ckpt"
    checkpoint = torch.load(path)
    if phase == "pretrain":
        shutil.copy(run_dir / "pretrain" / "weights.ckpt", path)
    elif phase == "model":
        checkpoint["clusterlab"]["model"] = "Other"
        torch.save(checkpoint, path)
    else:
        checkpoint["state_dict"]["centers"] = checkpoint["state_dict"]["centers"][:4]
        torch.save(checkpoint, path)
    line = refusal(do("run_dir=run", f"output_dir={finished.parent}"))
    assert expected in line
    assert result(run_dir)["error"] == line.removeprefix("Error: ")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loss.gamma=0.5", "loss.gamma=0.5 instead of 0.1"),
        ("seed=1", "seed=1 instead of 0"),
        ("data.batch_size=50", "data.batch_size=50 instead of 40"),
    ],
)
def test_run_folder_made_with_other_settings(
    do: Callable[..., Command], finished: Path, override: str, expected: str
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    line = refusal(do(f"run_dir={finished}", f"output_dir={finished.parent}", override))
    assert f"Expected the settings that {finished} was made with, got " in line
    assert f"{expected}; choose another run_dir, or restart=true" in line
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_run_folder_of_something_else(do: Callable[..., Command], work: Path) -> None:
    (work / "thesis").mkdir()
    (work / "thesis" / "chapter1.tex").touch()
    line = refusal(do("run_dir=thesis", "restart=true"))
    assert "Expected an empty folder or a run, got thesis with other files in it;" in line
    assert {name for name in files(work) if not name.endswith(".lock")} == {
        "thesis",
        "thesis/chapter1.tex",
    }


@pytest.mark.parametrize("key", ["output_dir", "run_dir", "pretrained_dir"])
def test_output_below_a_file(do: Callable[..., Command], work: Path, key: str) -> None:
    (work / "file").touch()
    refusal(do(f"{key}=file/below"))
    left = {name for name in files(work) if (work / name).is_file()}
    if key != "pretrained_dir":  # that one is opened when the run has started
        assert left == {"file"}


# Python ignores SIGXFSZ: writing more than that many bytes to a file is an OSError.
FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


def test_full_disk_at_the_start_leaves_nothing(do: Callable[..., Command], work: Path) -> None:
    line = refusal(do("run_dir=out/run", before=FULL.format(500)))
    assert "Expected a folder that can be written, got out/run (File too large);" in line
    assert {name for name in files(work) if (work / name).is_file()} == set()
    assert not (work / "out" / "run").exists()


@pytest.mark.parametrize("interval", [0, 10])
def test_full_disk_in_the_middle(
    do: Callable[..., Command], work: Path, finished: Path, interval: int
) -> None:
    arguments = ("run_dir=run", f"checkpoint_interval={interval}")
    line = refusal(do(*arguments, before=FULL.format(15_000)))
    assert "free some space" in line
    half = [name for name in files(work) if re.search(r"\.\d+$|\.part$|\.ckpt$", name)]
    assert half == []
    assert "error" in result(work / "run")
    again = do(*arguments)
    assert again.code == 0, again.stderr
    assert result(work / "run")["metrics"] == result(finished)["metrics"]


@pytest.mark.parametrize(
    ("phase", "terms"),
    [("pretrain", {"reconstruction"}), ("finetune", {"reconstruction", "clustering"})],
)
def test_nan_names_step_and_term(
    do: Callable[..., Command], work: Path, phase: str, terms: set[str]
) -> None:
    line = refusal(do("run_dir=run", f"phases.{phase}.optimizer.lr=1e30"))
    found = re.search(r"in the term '(\w+)' at step (\d+) of (\w+); lower (\S+)\.$", line)
    assert found is not None, line
    assert found[1] in terms
    assert 1 <= int(found[2]) <= 3
    assert found[3] == phase
    assert found[4] == f"phases.{phase}.optimizer.lr"
    record = result(work / "run")
    assert record["error"] == line.removeprefix("Error: ")
    assert "metrics" not in record  # nothing that a report could average
    assert not (work / "run" / "assignments.npz").exists()


# What works


def test_the_same_command_again_trains_nothing(do: Callable[..., Command], work: Path) -> None:
    first = do()
    assert first.code == 0, first.stderr
    run_dir = next(work.glob("runs/dcec_little/*"))
    assert "Finished before" not in first.stderr
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.*")}
    again = do()
    assert again.code == 0, again.stderr
    assert "Finished before: nothing to train." in again.stderr
    assert "steps" not in again.stderr
    assert again.stdout == first.stdout
    assert "dcec on little, seed 0: 200 samples, 5 clusters" in again.stdout
    assert str(run_dir.relative_to(work) / "result.json") in again.stdout
    after = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*.*")}
    changed = {path.name for path in before.keys() | after if before.get(path) != after.get(path)}
    assert changed <= {"settings.json", "config.yaml"}
    assert result(run_dir)["phases"]["finetune"]["steps"] == 37


def test_restart_starts_over(do: Callable[..., Command], work: Path, finished: Path) -> None:
    run_dir = work / "run"
    shutil.copytree(finished, run_dir)
    record = result(run_dir)
    (run_dir / "result.json").write_text(json.dumps({**record, "metrics": {}}))
    command = do("run_dir=run", f"output_dir={finished.parent}", "restart=true")
    assert command.code == 0, command.stderr
    assert "finetune: 37 steps" in command.stderr
    assert result(run_dir)["metrics"] == record["metrics"]


def test_a_sweep_over_seeds(do: Callable[..., Command], work: Path) -> None:
    command = do("-m", "seed=0,1")
    assert command.code == 0, command.stderr
    assert [f"dcec on little, seed {seed}:" in command.stdout for seed in (0, 1)] == [True] * 2
    assert command.stdout.count(" ACC ") == 2
    records = [result(path) for path in work.glob("runs/dcec_little/*")]
    one, other = sorted(records, key=lambda record: record["seed"])
    assert (one["seed"], other["seed"]) == (0, 1)
    assert one["settings_sha256"] == other["settings_sha256"]
    assert one["phases"]["pretrain"]["store"] != other["phases"]["pretrain"]["store"]


def test_what_is_added_to_the_trainer_is_a_setting(do: Callable[..., Command], work: Path) -> None:
    for override in ("+trainer.fast_dev_run=true", "seed=0"):  # a quick look, then the run
        command = do(override, "phases.finetune.max_steps=3")
        assert command.code == 0, command.stderr
    quick, run = (result(path) for path in sorted(work.glob("runs/dcec_little/*")))
    assert quick["settings_sha256"] != run["settings_sha256"]
    pretrained = [record["phases"]["pretrain"] for record in (quick, run)]
    assert [phase["reused"] for phase in pretrained] == [False, False]
    assert pretrained[0]["steps"] == 1 < pretrained[1]["steps"]


def test_a_failing_job_does_not_stop_a_sweep(do: Callable[..., Command], work: Path) -> None:
    command = do("-m", "n_clusters=5,1,4")
    assert command.code == 1
    assert "Traceback" not in command.stderr
    assert command.stderr.count("Error: Expected ") == 1
    assert [f", {k} clusters" in command.stdout for k in (5, 1, 4)] == [True, False, True]
    runs = sorted(path.name for path in work.glob("runs/dcec_little/*"))
    assert len(runs) == 2
    assert "Sweep of 3: 1 done, 0 running, 0 failed, 2 left, about 0:00 h." in command.stderr
    *_, head, why, again = command.stderr.splitlines()
    assert head == "Sweep of 3: 2 done, 0 running, 1 failed, 0 left."
    after = "Sweep of 3: 1 done, 0 running, 1 failed, 1 left, about 0:00 h."
    assert after in command.stderr
    (log,) = work.glob("runs/.multirun/*/progress.log")
    assert len(log.read_text().splitlines()) == 4
    assert after in log.read_text()
    assert re.search(r" n_clusters=1 .*: Expected n_clusters from 2 to .+; set n_clusters\.$", why)
    repeated = shlex.split(again.removeprefix("  again: python "))
    assert repeated[0].endswith("train.py")
    assert "n_clusters=1" in repeated
    assert refusal(do(*repeated[1:]))


@pytest.mark.slow
def test_a_failing_job_of_parallel_jobs(do: Callable[..., Command], work: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    command = do("-m", *launcher, "n_clusters=5,1")
    assert command.stderr.count("Error: Expected ") == 1, command.stderr
    assert "dcec on little" in command.stdout
    assert len(list(work.glob("runs/dcec_little/*/result.json"))) == 1
    assert command.code == 1
    assert "1 done, 0 running, 1 failed, 0 left" in command.stderr


@pytest.mark.slow
def test_optuna_chooses_without_labels(do: Callable[..., Command], work: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    rate = "phases.finetune.optimizer.lr=0.0001"  # with a larger one this little run collapses
    command = do("sweep=optuna", "hydra.sweeper.n_trials=3", "output_dir=out", rate)
    assert command.code == 0, command.stderr
    assert "Sweep: 3 done, 0 running, 0 failed." in command.stderr
    assert "LABELS" not in command.stderr
    scores = {}
    for path in work.glob("out/dcec_little/*/result.json"):
        record = json.loads(path.read_text())
        scores[record["config"]["loss"]["gamma"]] = record["label_free"]["silhouette"]
    assert len(scores) == 3
    told = yaml.safe_load((work / "out" / ".multirun" / "optimization_results.yaml").read_text())
    assert told["best_value"] == pytest.approx(max(scores.values()))
    assert scores[told["best_params"]["loss.gamma"]] == max(scores.values())


def test_sweep_group_is_a_multirun(
    do: Callable[..., Command], commands: Commands, work: Path
) -> None:
    shown = commands.run("--cfg", "hydra", "sweep=seeds", cwd=work)
    assert "mode: MULTIRUN" in shown.stdout
    assert "seed: 0,1,2,3,4" in shown.stdout
    command = do("sweep=seeds", "hydra.sweeper.params.seed='0,1'")
    assert command.code == 0, command.stderr
    assert len(list(work.glob("runs/dcec_little/*/result.json"))) == 2


# Sends Ctrl-C to this very process, as a terminal does, in the middle of an epoch. A shell starts
# its background jobs with SIGINT ignored, and the tests may be one.
INTERRUPT = """
import os, signal
from clusterlab.callbacks import StepLimit
signal.signal(signal.SIGINT, signal.default_int_handler)
end = StepLimit.on_train_batch_end

def interrupting(self, trainer, module, *args):
    end(self, trainer, module, *args)
    if module.phase == {phase!r} and trainer.global_step == {step}:
        os.kill(os.getpid(), signal.SIGINT)

StepLimit.on_train_batch_end = interrupting
"""


@pytest.mark.parametrize(("phase", "step"), [("pretrain", 8), ("finetune", 23)])
def test_interrupted_by_the_user(
    do: Callable[..., Command], work: Path, finished: Path, phase: str, step: int
) -> None:
    arguments = ("run_dir=run", "checkpoint_interval=0")
    command = do(*arguments, before=INTERRUPT.format(phase=phase, step=step))
    assert command.code == 130, command.stderr
    lines = command.stderr.splitlines()
    told = "Interrupted; the same command goes on from the last checkpoint."
    assert lines.count(told) == 1
    assert lines[-1] == told
    assert "Traceback" not in command.stderr
    assert not command.stdout
    assert not (work / "run" / "result.json").exists()  # neither finished nor failed
    again = do(*arguments)
    assert again.code == 0, again.stderr
    assert f"Resuming {phase} at step" in again.stderr
    same = ("metrics", "label_free")
    assert {key: result(work / "run")[key] for key in same} == {
        key: result(finished)[key] for key in same
    }
    for name in ("pretrain", "finetune"):
        one, other = (
            torch.load(run_dir / name / "weights.ckpt")["state_dict"]
            for run_dir in (work / "run", finished)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert (work / "run" / "metrics.csv").read_text() == (finished / "metrics.csv").read_text()


def test_interrupting_a_sweep_stops_it(do: Callable[..., Command], work: Path) -> None:
    before = INTERRUPT.format(phase="finetune", step=3)
    command = do("-m", "seed=0,1", before=before)
    assert command.code == 130, command.stderr
    assert len(list(work.glob("runs/dcec_little/*"))) == 1


def test_signal_between_phases(do: Callable[..., Command], work: Path) -> None:
    """Ctrl-C outside of Lightning, while scores are computed."""
    before = (
        "import os, signal, clusterlab.training as training\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"training.evaluate = lambda *args: os.kill(os.getpid(), {int(signal.SIGINT)})\n"
    )
    command = do("run_dir=run", before=before)
    assert command.code == 130, command.stderr
    assert "Interrupted;" in command.stderr
    assert "Traceback" not in command.stderr
    assert not (work / "run" / "result.json").exists()


def test_a_launcher_starts_its_job_again(do: Callable[..., Command], work: Path) -> None:
    """Submitit stops a job by an exit with a code that makes it start the job again."""
    before = (
        "import sys, clusterlab.training as training\n"
        "training.evaluate = lambda *args: sys.exit(144)\n"
    )
    command = do("run_dir=run", before=before)
    assert command.code == 144, command.stderr
    assert "Traceback" not in command.stderr
    assert not (work / "run" / "result.json").exists()


# Names of run folders


def named(
    *overrides: str, data: str = "little", experiment: str | None = None, bits: str = "32-true"
) -> str:
    cfg = {"model_name": "dcec", "data": {"name": data}, "seed": 0, "experiment_name": experiment}
    return run_name(DictConfig({**cfg, "trainer": {"precision": bits}}), list(overrides))


def test_names_do_not_depend_on_order_or_on_where_it_runs() -> None:
    name = named("loss.gamma=0.5", "n_clusters=5")
    assert name == "dcec_little/loss.gamma=0.5,n_clusters=5,seed=0"
    assert named("n_clusters=5", "loss.gamma=0.5") == name
    where = ("trainer=gpu", "trainer.devices=2", "logger=wandb", "data.root=/x", "figures=false")
    assert named("loss.gamma=0.5", *where, "n_clusters=5", "hydra.launcher.n_jobs=2") == name
    assert named("loss.gamma=0.25", "n_clusters=5") != name


def test_another_precision_is_another_folder() -> None:
    """It is a setting, whether it was asked for or came with the trainer."""
    name = "dcec_little/trainer.precision=bf16-mixed,seed=0"
    assert named("trainer.precision=bf16-mixed", bits="bf16-mixed") == name
    assert named("trainer=gpu", bits="bf16-mixed") == name
    assert named("trainer=gpu") == named()


def test_experiment_names_the_folder() -> None:
    name = named("experiment=dcec_table1", "model=dcec", experiment="dcec_table1")
    assert name == "dcec_table1/dcec_little,seed=0"
    other = named("experiment=dcec_table1", "data=npz", data="other", experiment="dcec_table1")
    assert other == "dcec_table1/dcec_other,seed=0"


def test_a_record_says_what_was_asked(finished: Path) -> None:
    asked = result(finished)["asked"]
    assert asked["network.filters"] == "[4,8,16]"
    assert asked["data.augment"] == "null"
    assert len(asked) == len(LITTLE) - 3 + 1  # without data, trainer and figures, with data.path


def test_what_was_asked_is_kept_as_it_was_typed() -> None:
    typed = ("+a.b=1", "~phases.pretrain", "x@y=z", "path=${.here}", "seed=3", "trainer=gpu")
    cfg = OmegaConf.create(
        {"model_name": "dcec", "data": {"name": "little"}, "seed": 0, "experiment_name": None}
        | {"asked": {}, "trainer": {"precision": "32-true"}, **dict.fromkeys(PATHS, "a")}
    )
    OmegaConf.set_struct(cfg, True)
    settle(cfg, list(typed))
    kept = OmegaConf.to_container(cfg.asked, resolve=True)
    assert kept == {"a.b": "1", "path": "${.here}", "x@y": "z", "~phases.pretrain": "none"}


@pytest.mark.parametrize("override", ["asked=7", "+asked.x=1", "~asked", "experiment_name=mine"])
def test_what_is_filled_in_cannot_be_asked_for(override: str) -> None:
    cfg = OmegaConf.create(dict.fromkeys(PATHS, "a"))
    with pytest.raises(UserError, match=f"by the command line, got {re.escape(override)}; "):
        settle(cfg, ["model=dcec", override])


AWKWARD = [
    "data.path=/home/me/my data/x.npz",
    "data.path='../../x y.npz'",
    "network.filters=[4,8,16]",
    "x=" + "a" * 500,
    "x=" + "/" * 500,
    "data.path=/bilder/" + "ü" * 150 + ".npz",
    "data.path=" + "画像" * 60,
    'x=a\nb\tc\x00d:*?"<>|\\',
]


@pytest.mark.parametrize("override", AWKWARD)
def test_names_are_one_folder_that_can_be_made(override: str, tmp_path: Path) -> None:
    name = named(override)
    assert name == named(override)
    assert name.count("/") == 1
    assert not re.search(r'[\s\x00:*?"<>|\\\[\]]', name)
    assert all(len(part.encode()) < 255 for part in name.split("/"))
    (tmp_path / name).mkdir(parents=True)


def test_long_names_stay_different() -> None:
    one, other = (named("x=" + "a" * 500 + end) for end in "bc")
    assert one != other
    assert one.split("~")[0] == other.split("~")[0]


@pytest.mark.parametrize("data", ["a/b", "../../up", "/abs", "n" * 300])
def test_the_name_of_the_data_cannot_leave_the_output_folder(data: str) -> None:
    name = named(data=data)
    assert name.count("/") == 1
    assert not name.startswith(("/", "."))
    assert all(len(part) < 255 for part in name.split("/"))


def test_folder_of_a_run_with_a_path_in_its_overrides(
    do: Callable[..., Command], work: Path
) -> None:
    command = do("phases.pretrain.max_epochs=1", "phases.finetune.max_steps=1")
    assert command.code == 0, command.stderr
    made = [path.parent.relative_to(work) for path in work.rglob("result.json")]
    assert len(made) == 1
    assert made[0].parts[:-1] == ("runs", "dcec_little")
    assert made[0].name.endswith(",seed=0") or "~" in made[0].name
