"""What README, docs and the configs' comments tell people to type."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from conftest import own_method

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "conf").rglob("*.yaml"))


def commands(path: Path) -> Iterator[list[str]]:
    """Yield the arguments of each ``python train.py`` in a file, without what explains it."""
    text = path.read_text().replace("\\\n#  ", "")  # continued comments
    for line in re.findall(r"python train\.py( [^`\n]*)?", text):
        yield shlex.split(re.split(r"  +|; ", line)[0])


def first(override: Override) -> str:
    """Return one of the overrides that a sweep over it makes."""
    if not override.is_sweep_override():
        assert override.input_line is not None
        return override.input_line
    value = override.value()
    some = (
        value.start if isinstance(value, IntervalSweep) else next(override.sweep_string_iterator())
    )
    return f"{override.get_key_element()}={some}"


@pytest.mark.parametrize("path", [*PAGES, CONFIGS], ids=["readme", "results", "speed", "configs"])
def test_every_command_composes(path: Path | list[Path], tmp_path: Path) -> None:
    found, own = 0, own_method(tmp_path)
    paths = path if isinstance(path, list) else [path]
    for arguments in (a for p in paths for a in commands(p)):
        overrides = [a for a in arguments if a not in ("-m", "--cfg", "job")]
        if overrides[:2] == ["--config-dir", "mine"]:
            overrides[:2] = [f"hydra.searchpath=[{own}]"]
        parsed = OverridesParser.create().parse_overrides(overrides)
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            compose("train", [first(override) for override in parsed])
        found += 1
    assert found > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_and_script_is_there(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    for link in links:
        assert (page.parent / link).exists(), link
    for script in re.findall(r"\b(?:scripts|conf|src|docs)/[\w/]+\.\w+", text):
        assert (ROOT / script).exists(), script
