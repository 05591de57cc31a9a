"""The two programs that measure speed still measure: on a few small images, for seconds."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clusterlab.loggers import Row
from conftest import composed, script_module

benchmark, scaling = script_module("benchmark"), script_module("scaling")


def case(folder: Path, *overrides: str, n_samples: int = 48, near_empty: bool = False) -> Any:
    cfg = composed(
        folder, "data=mnist", "model.n_init=1", "phases.finetune.tolerance=0", *overrides
    )
    return benchmark.Case(cfg, n_samples, side=8, batch_size=16, near_empty=near_empty)


def values(rows: list[Row]) -> dict[tuple[str, str], float]:
    return {(str(row["measure"]), str(row["unit"])): float(row["value"]) for row in rows}


def test_a_ratio_is_that_of_the_speeds(tmp_path: Path) -> None:
    found = values(benchmark.compare(case(tmp_path), rounds=1))
    for kind in ("CPU", "wall"):
        speeds = {n: found[f"pretrain, {n}", f"images / {kind} s"] for n in benchmark.VARIANTS}
        for name in ("clusterlab", "plain Lightning"):
            ratio = found[f"{name} / bare loop", f"{kind} ratio"]
            assert ratio == pytest.approx(speeds[name] / speeds["bare loop"], rel=1e-3)


def test_a_fixed_cost_is_of_milliseconds(tmp_path: Path) -> None:
    rows = benchmark.compare(case(tmp_path, n_samples=160, near_empty=True), rounds=1)
    found = values(rows)
    assert len(found) == len(rows) == 4
    assert 0 < found["fixed cost, clusterlab", "CPU ms / step"] < 100


@pytest.mark.parametrize("method", ["dcec", "idcec", "cdc"])
def test_each_method_is_compared_with_itself(tmp_path: Path, method: str) -> None:
    row = benchmark.cost(case(tmp_path, f"model={method}"), 1, "twice", [], [])
    assert 0.1 < float(row["value"]) < 10


PARTS = {"clusterlab.phases.kept_memory": nullcontext, "clusterlab.networks.products.MOST": 0}


@pytest.mark.parametrize("part", PARTS)
def test_the_first_phase_is_measured_without_a_part(tmp_path: Path, part: str) -> None:
    icae = composed(tmp_path, "data=mnist", "model=icae", "network=residual_small")
    for measured in (case(tmp_path), replace(case(tmp_path), cfg=icae)):
        row = benchmark.without(measured, 1, "it", part, PARTS[part])
        assert row["measure"] == "it"
        assert 0.1 < float(row["value"]) < 10


def test_the_share_of_refreshes_is_of_a_refresh_and_its_steps(tmp_path: Path) -> None:
    share, refresh = benchmark.refresh_share(case(tmp_path), 6)
    assert share["measure"] == "refreshes at T = 140, from 2 of them and 6 steps"
    step = float(refresh["value"]) * (100 / float(share["value"]) - 1) / benchmark.T
    assert 1e-4 < step < 1


def test_augmented_images_are_counted(tmp_path: Path) -> None:
    assert float(benchmark.augmentation(case(tmp_path), 1)["value"]) > 1000


def test_what_surrounds_a_network_is_measured_part_by_part() -> None:
    rows = scaling.measure(200, 3)
    assert [row["part"] for row in rows] == [*scaling.parts(200, 3), "peak memory"]
    assert all(float(row["value"]) >= 0 for row in rows)
