"""The package as a user installs it: a wheel, away from the checkout."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def call(*arguments: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this checkout."""
    pytest.importorskip("build")
    out = tmp_path_factory.mktemp("dist")
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    built = call("-m", "build", "--wheel", *isolation, "--outdir", out, ROOT, cwd=out)
    if built.returncode and not isolation and "hatchling" in built.stdout + built.stderr:
        pytest.skip("hatchling is neither installed nor to be had from a package index")
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("clusterlab-*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a folder of its own, with a mark in its configs."""
    site = tmp_path_factory.mktemp("site")
    done = call("-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel, cwd=site)
    assert done.returncode == 0, done.stdout + done.stderr
    train = site / "clusterlab" / "conf" / "train.yaml"
    train.write_text(train.read_text().replace("seed: 0", "seed: 12345"))
    return site


def test_wheel_holds_package_and_configs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith("METADATA"))
        text = archive.read(metadata).decode()
        scripts = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    for folder, prefix, pattern in (
        (ROOT / "conf", "clusterlab/conf", "*.yaml"),
        (ROOT / "src" / "clusterlab", "clusterlab", "*.py"),
    ):
        wanted = {f"{prefix}/{path.relative_to(folder)}" for path in folder.rglob(pattern)}
        assert len(wanted) > 10
        assert wanted <= names
    assert {f"clusterlab/templates/{name}.html.j2" for name in ("report", "index")} <= names
    strangers = {name for name in names if not name.startswith(("clusterlab/", "clusterlab-"))}
    assert not strangers
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    assert "Requires-Dist: torch" in text
    assert "clusterlab = clusterlab.cli:main" in scripts
    assert "clusterlab-predict = clusterlab.predict:main" in scripts
    assert "clusterlab-page = clusterlab.page:main" in scripts
    assert "clusterlab-scan = clusterlab.scan:main" in scripts


# The editable install of the checkout comes after PYTHONPATH; say which one ran.
MAIN = "import clusterlab.cli as cli; print(cli.__file__, cli.config_folder()); cli.main()"


def test_installed_command_uses_its_own_configs(site: Path, tmp_path: Path) -> None:
    where = f"{site / 'clusterlab' / 'cli.py'} {site / 'clusterlab' / 'conf'}\n"
    shown = call("-c", MAIN, "--cfg", "job", cwd=tmp_path, PYTHONPATH=str(site))
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(where)
    assert "\nseed: 12345\n" in shown.stdout
    assert "DCEC" in shown.stdout

    run = call(
        "-c",
        MAIN,
        "phases.pretrain.max_epochs=1",
        "phases.finetune.max_steps=2",
        "figures=false",
        "trainer=cpu",
        "run_dir=run",
        cwd=tmp_path,
        PYTHONPATH=str(site),
        OMP_NUM_THREADS="1",
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(where)
    assert "dcec on digits, seed 12345" in run.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["seed"] == 12345
    assert result["commit"] is None
    assert result["versions"]["clusterlab"]
    assert result["phases"]["finetune"]["steps"] == 2


def test_checkout_knows_the_last_commit_of_its_code(tmp_path: Path) -> None:
    """The other side of ``commit`` being null above: what changed no code is the same revision."""

    def git(*command: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ["git", *identity, *command], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def committed() -> str:
        git("add", ".")
        git("commit", "-m", "one more")
        return git("rev-parse", "HEAD")

    def shown() -> str:
        code = "from clusterlab.record import commit; print(commit())"
        run = call("-c", code, cwd=Path("/"), PYTHONPATH=str(tmp_path / "src"))
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()

    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    git("init")
    first = committed()
    (tmp_path / "README.md").write_text("about it")
    committed()
    assert shown() == first
    setting = tmp_path / "conf" / "train.yaml"
    setting.write_text(setting.read_text() + "# a word more\n")
    assert shown() == first + "-dirty"
    assert committed() == shown() != first
