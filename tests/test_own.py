"""A method of one's own in a folder of one's own, beside an installed package or a checkout."""

import importlib
import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_wine

from clusterlab import DeepClusterer
from clusterlab.code import code_digest, imported, own_files
from clusterlab.data.samples import Samples, as_float
from clusterlab.loggers import read_csv
from clusterlab.models.dcec import DCEC
from clusterlab.predict import load
from conftest import LITTLE, Command, Commands, own_method

# A pretrain loss that nobody else has.
ABSOLUTE = """
    def pretrain_loss(self, batch):
        _, x_hat = self.network(batch["x"])
        return {"absolute": (x_hat - batch["x"]).abs().mean()}
"""


# A pretrain loss of views, and a last phase that nobody else has.
CONTRAST = """
import torch
from torch.nn.functional import cross_entropy, normalize
from clusterlab.models.dcec import DCEC


class Contrast(DCEC):
    compares_views = True

    def pretrain_loss(self, batch):
        a, b = (normalize(self.network.encode(view), dim=1) for view in batch["views"][:2])
        return {"contrast": cross_entropy(a @ b.T / 0.2, torch.arange(len(a)))}

    def shrink_loss(self, batch):
        return {"length": self.network.encode(batch["x"]).square().sum(1).mean()}
"""
CONTRAST_CONFIG = """
# @package _global_
defaults:
  - dcec
  - /phase@phases.shrink: pretrain
  - override /augment@phases.pretrain.augment: views
  - override /augment@phases.finetune.augment: affine
  - _self_
model_name: contrast
model: {_target_: contrast.Contrast}
phases: {shrink: {max_epochs: 4}}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with the README's method and its config."""
    return own_method(tmp_path)


@pytest.fixture
def do(commands: Commands, own: Path, little_npz: Path, tmp_path: Path) -> Callable[..., Command]:
    """Run a command that takes a second."""

    def run(*overrides: str, path: Path = own, sweep: bool = False) -> Command:
        where = (f"data.path={little_npz}", f"output_dir={tmp_path / 'runs'}")
        options = ("--config-dir", str(own), *["-m"] * sweep)
        before = f"import sys; sys.path.insert(0, {str(path)!r})"  # what PYTHONPATH does
        return commands.run(*options, *LITTLE, *where, *overrides, before=before)

    return run


@pytest.fixture
def importable(own: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process find the method too, and forget it afterwards."""
    monkeypatch.syspath_prepend(own)
    yield
    sys.modules.pop("mine", None)


def result(command: Command) -> dict[str, Any]:
    assert command.code == 0, command.stderr
    (file,) = re.findall(r"^.*result\.json$", command.stdout, re.MULTILINE)
    record: dict[str, Any] = json.loads(Path(file).read_text())
    return {**record, "run_dir": Path(file).parent}


def test_it_trains_and_an_edit_of_it_is_told(
    do: Callable[..., Command], own: Path, little_npz: Path, importable: None
) -> None:
    paper, first = result(do("model=dcec")), do("model=mine")
    assert "other code" not in first.stderr  # of its pretraining, which is DCEC's
    mine = result(first)
    assert mine["model"] == "mine"
    assert mine["code_sha256"] != paper["code_sha256"]
    assert mine["phases"]["pretrain"]["store"] == paper["phases"]["pretrain"]["store"]
    rows = read_csv(mine["run_dir"] / "metrics.csv")
    balance = [row["finetune/balance"] for row in rows if "finetune/balance" in row]
    assert len(balance) == 8  # epochs

    told = "The finished run is of other code than this"
    again = do("model=mine")
    assert "Finished before" in again.stderr
    assert told not in again.stderr
    with (own / "mine.py").open("a") as file:
        file.write(ABSOLUTE)
    assert f"{told}; if the difference matters, start the run over" in do("model=mine").stderr
    assert told not in do("model=dcec").stderr
    other = result(do("model=mine", "restart=true"))["phases"]["pretrain"]
    assert not other["reused"]  # nobody's autoencoder, though the class says nothing of it

    images = np.load(little_npz)["x"]
    labels, _ = load(mine["run_dir"]).predict(images)
    assert (labels == np.load(mine["run_dir"] / "assignments.npz")["label"]).all()


def test_its_loss_is_the_papers_and_a_term_more(
    dcec: Callable[..., DCEC], tiny: Samples, importable: None
) -> None:
    paper, mine = dcec(), dcec(importlib.import_module("mine").Mine)
    x = as_float(tiny.x[:40])
    terms = []
    for model in (paper, mine):
        z = model.network.encode(x).detach()
        model.centers.data = torch.diag(torch.arange(10.0))  # near to far: uneven shares
        model.target = torch.eye(10).repeat(4, 1)
        terms.append(model.finetune_loss({"x": x, "index": torch.arange(40)}))
    balance = terms[1].pop("balance").item()
    assert terms[1] == terms[0]
    points = z.double().numpy()
    kernel = 1 / (1 + ((points[:, None] - np.diag(np.arange(10.0))) ** 2).sum(2))
    share = (kernel / kernel.sum(1, keepdims=True)).mean(0)
    assert balance == pytest.approx(0.1 * sum(s * math.log(10 * s) for s in share), rel=1e-5)


def test_it_may_compare_views_and_have_a_phase_more(do: Callable[..., Command], own: Path) -> None:
    (own / "contrast.py").write_text(CONTRAST)
    (own / "model" / "contrast.yaml").write_text(CONTRAST_CONFIG)
    record = result(do("model=contrast"))
    assert list(record["phases"]) == ["pretrain", "finetune", "shrink"]
    rows = read_csv(record["run_dir"] / "metrics.csv")
    contrast = [row["pretrain/contrast"] for row in rows if "pretrain/contrast" in row]
    assert len(contrast) == 3
    assert contrast[2] < contrast[0] < math.log(40) + 0.1  # who cannot tell 40 apart has log 40
    length = [row["shrink/length"] for row in rows if "shrink/length" in row]
    assert len(length) == 4
    assert length[3] < length[0] / 2
    z = np.load(record["run_dir"] / "assignments.npz")["z"]
    assert (z**2).sum(1).mean() < length[3]  # what follows the last phase is of its weights


def test_a_start_that_labels_guide_is_where_the_next_run_begins(
    commands: Commands, own: Path, little_npz: Path, tmp_path: Path
) -> None:
    little = ("data=npz", f"data.path={little_npz}", "n_clusters=5", "data.batch_size=40")
    little += ("network.filters=[4,6,8]", "network.embedding_dim=6", "trainer=cpu", "figures=false")
    before = f"import sys; sys.path.insert(0, {str(own)!r})"
    place = tmp_path / "guided"
    told = ("model=guided", "phases.finetune.max_epochs=40", f"run_dir={place}")
    guided = result(commands.run("--config-dir", str(own), *little, *told, before=before))
    assert guided["metrics"]["accuracy"] > 0.9

    start = ("phases.finetune.max_epochs=1", f"init_from={place}/finetune/weights.ckpt")
    free = result(commands.run(*little, "model=icae", f"run_dir={tmp_path / 'free'}", *start))
    # The same seed has the same centers.
    assert free["phases"]["finetune"]["metrics_at_start"].items() >= guided["metrics"].items()


def test_it_is_an_estimator(own: Path, little_npz: Path, importable: None) -> None:
    images = np.load(little_npz)["x"]
    overrides = ["network.filters=[4,8,16]"]
    centers = {}
    for name in ("mine", "dcec"):
        asked = [*overrides, f"hydra.searchpath=[{own}]"]
        clusterer = DeepClusterer(name, 5, pretrain_epochs=1, max_steps=5, overrides=asked)
        centers[name] = clusterer.fit(images).cluster_centers_
    assert centers["mine"].shape == (5, 5)
    assert not np.allclose(centers["mine"], centers["dcec"])


def test_where_it_is_missing_is_told(do: Callable[..., Command], tmp_path: Path) -> None:
    command = do("model=mine", path=tmp_path / "elsewhere")
    assert command.code == 1
    (line,) = [line for line in command.stderr.splitlines() if "Error" in line]
    # A folder of that name is in the working folder, as the README has it: Python finds that.
    got = "module 'mine' has no attribute 'Mine'"
    assert line.startswith(f"Error: Expected all that the config names to be there, got {got}; ")
    assert line.endswith("or name the folder of your own code in PYTHONPATH.")


@pytest.mark.parametrize("group", ["model", "experiment", "sweep"])
def test_a_config_that_is_not_global_is_told(
    do: Callable[..., Command], own: Path, group: str
) -> None:
    # Hydra looks for the line in a file's first ones only, and for an experiment says nothing.
    path = own / group / "late.yaml"
    path.parent.mkdir(exist_ok=True)
    base = "defaults: [dcec, _self_]\n" if group == "model" else ""
    path.write_text(f"# late\n# @package _global_\n{base}model_name: late\n")
    command = do(f"{group}=late")
    told = f"Error: Expected the first line of the file that {group}= names to be # @package"
    assert command.code == 1
    assert told in command.stderr


def test_a_failed_job_is_repeated_with_its_folder(do: Callable[..., Command], own: Path) -> None:
    command = do("model=mine", "loss.gamma=-1", sweep=True)
    assert command.code == 1, command.stderr
    (again,) = [line for line in command.stderr.splitlines() if line.startswith("  again: ")]
    words = shlex.split(again)
    assert words[3:5] == ["--config-dir", str(own)]
    assert "model=mine" in words


WINE = ("model=idec", "network=narrow", "data=wine", "trainer=cpu", "figures=false")
SHORT = ("phases.pretrain.max_epochs=2", "phases.finetune.max_steps=30")


def test_a_network_and_data_are_taken_as_a_method_is(
    commands: Commands, own: Path, tmp_path: Path
) -> None:
    before = f"import sys; sys.path.insert(0, {str(own)!r})"
    arguments = ("--config-dir", str(own), *WINE, *SHORT, f"output_dir={tmp_path / 'runs'}")
    record = result(commands.run(*arguments, before=before))
    assert (record["data"], record["n_samples"], record["n_clusters"]) == ("wine", 178, 3)
    assert record["metrics"]["accuracy"] > 0.4  # the largest class is 71 of 178

    file = record["run_dir"] / "finetune" / "weights.ckpt"
    weights = torch.load(file, weights_only=True)["state_dict"]
    first, second = (
        [weights[f"network.encoder.{i}.{name}"].double().numpy() for name in ("weight", "bias")]
        for i in (0, 2)
    )
    x = load_wine().data
    x = (x - x.mean(0)) / x.std(0)
    z = np.maximum(x @ first[0].T + first[1], 0) @ second[0].T + second[1]
    stored = np.load(record["run_dir"] / "assignments.npz")["z"]
    assert z.shape == (178, 3)
    assert stored == pytest.approx(z, abs=1e-5)


def test_what_does_not_fit_is_told_before_it_trains(
    commands: Commands, do: Callable[..., Command], own: Path, tmp_path: Path
) -> None:
    wine = (own / "wine.py").read_text()
    before = f"import sys; sys.path.insert(0, {str(own)!r})"
    arguments = ("--config-dir", str(own), *WINE, *SHORT, f"output_dir={tmp_path / 'runs'}")
    for right, wrong, told in (
        ("width, d)", "width, 1)", "reconstructions of shape (13,) from Narrow, got (1,)"),
        ("embedding_dim)\n\n", "2)\n\n", "embeddings of shape (2,) from Narrow, got (3,)"),
        ("return array(", "return (", "a Samples from wine.wine, got a tuple"),
    ):
        (own / "wine.py").write_text(wine.replace(right, wrong))
        command = commands.run(*arguments, before=before)
        assert command.code == 1
        assert f"Error: Expected {told}; " in command.stderr, command.stderr
        assert "Traceback" not in command.stderr
        assert not list((tmp_path / "runs").rglob("pretrain"))

    method = (own / "mine.py").read_text().replace(".log()).sum()", ".log())")
    (own / "mine.py").write_text(method)
    command = do("model=mine")
    assert command.code == 1
    assert "'balance' of finetune_loss, got a Tensor of shape (5,); return" in command.stderr


def test_code_is_the_package_and_what_a_config_names_from_elsewhere(importable: None) -> None:
    package = code_digest(OmegaConf.create())
    for known in ("clusterlab.models.dcec.DCEC", "torch.optim.Adam", "builtins.dict", "json.loads"):
        assert code_digest(OmegaConf.create({"a": [{"_target_": known}]})) == package
    cfg = OmegaConf.create({"model": {"_target_": "mine.Mine"}})
    assert code_digest(cfg) != package
    assert code_digest(OmegaConf.create({"phases": {"b": [cfg]}})) == code_digest(cfg)


def test_code_is_also_what_that_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "lone.py": "import torch, json, sys, clusterlab\nfrom helped import W\nclass Lone: pass\n",
        "helped.py": "def late():\n    import lazy.deep, broken, nowhere\nW = 3\n",
        "lazy/deep.py": "from . import beside\nfrom .beside import lone\n",  # of a folder alone
        "lazy/beside.py": "import lone\n",  # in a circle
        "broken.py": "import unread\n)",
        "unread.py": "",
        "kept/__init__.py": "from kept.inner import other\nraise RuntimeError('never run')\n",
        "kept/inner/__init__.py": "",
        "kept/inner/net.py": "from .. import outer\nfrom .other import *\n",
        "kept/inner/other.py": "",
        "kept/outer.py": "",
        "aside.py": "",
        "site-packages/bought.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    monkeypatch.syspath_prepend(tmp_path)

    found = own_files("lone", tmp_path / "lone.py")
    assert set(found) == {"lone", "helped", "lazy.deep", "lazy.beside", "broken"}
    assert found["lazy.beside"] == tmp_path / "lazy" / "beside.py"
    inner = {"kept", "kept.inner", "kept.inner.net", "kept.inner.other", "kept.outer"}
    assert set(own_files("kept.inner.net", tmp_path / "kept/inner/net.py")) == inner
    assert not own_files("bought", tmp_path / "site-packages/bought.py")

    cfg = OmegaConf.create({"_target_": "lone.Lone"})
    digests = []
    for edited in (None, "aside.py", "lazy/beside.py"):
        if edited:
            (tmp_path / edited).write_text("import lone\n# edited\n")
        own_files.cache_clear()  # as in the next process
        imported.cache_clear()
        digests.append(code_digest(cfg))
    sys.modules.pop("lone")
    sys.modules.pop("helped")
    assert digests[0] == digests[1] != digests[2]
