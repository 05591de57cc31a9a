"""The CSV of a phase: rows as they come, whole after a kill, equal after a resume."""

import math
from pathlib import Path

import pytest

from clusterlab.loggers import PhaseCsv, columns, read_csv, write_csv


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.csv"


def test_a_row_a_call(path: Path):
    logger = PhaseCsv(path, "pretrain")
    logger.log_metrics({"pretrain/loss": 0.5, "epoch": 0}, 4)
    assert path.read_text() == "phase,step,pretrain/loss\npretrain,4,0.5\n"
    logger.log_metrics({"pretrain/loss": 0.25, "epoch": 1}, 8)
    assert path.read_text() == "phase,step,pretrain/loss\npretrain,4,0.5\npretrain,8,0.25\n"


def test_steps_are_integers(path: Path):
    PhaseCsv(path, "pretrain").log_metrics({"loss": 1.0}, 12.0)  # type: ignore[arg-type]
    assert "pretrain,12,1.0" in path.read_text()


def test_a_new_column_is_added_to_all_rows(path: Path):
    logger = PhaseCsv(path, "finetune")
    logger.log_metrics({"cluster/nmi": 0.5}, 0)
    logger.log_metrics({"finetune/loss": 2.0}, 4)
    logger.log_metrics({"cluster/nmi": 0.75, "cluster/label_change": 0.125}, 5)
    logger.log_metrics({"finetune/loss": 1.0}, 8)
    assert path.read_text().splitlines() == [
        "phase,step,cluster/nmi,finetune/loss,cluster/label_change",
        "finetune,0,0.5,,",
        "finetune,4,,2.0,",
        "finetune,5,0.75,,0.125",
        "finetune,8,,1.0,",
    ]


ROWS = [
    ({"c": 0.1}, 0),
    ({"l": 1.0}, 4),
    ({"c": 0.2, "d": 0.5}, 6),
    ({"l": 2.0}, 8),
    ({"l": 3.0}, 12),
]


def test_a_resumed_phase_replaces_what_it_logs_again(path: Path):
    straight = path.with_name("straight.csv")
    logger = PhaseCsv(straight, "finetune")
    for metrics, step in ROWS:
        logger.log_metrics(metrics, step)
    for saved in range(len(ROWS)):  # killed after all rows, resumed after `saved` of them
        path.write_bytes(straight.read_bytes())
        logger = PhaseCsv(path, "finetune")
        assert path.read_bytes() == straight.read_bytes()  # nothing is lost before it logs
        for metrics, step in ROWS[saved:]:
            logger.log_metrics(metrics, step)
        assert path.read_bytes() == straight.read_bytes()


def test_a_resumed_phase_drops_rows_of_other_values(path: Path):
    write_csv(path, [{"phase": "p", "step": s, "loss": 9.0} for s in (2, 4, 6, 8)])
    PhaseCsv(path, "p").log_metrics({"loss": 1.0}, 6)
    assert [(row["step"], row["loss"]) for row in read_csv(path)] == [(2, 9), (4, 9), (6, 1)]


def test_two_rows_of_one_step_stay(path: Path):
    logger = PhaseCsv(path, "finetune")
    logger.log_metrics({"cluster/nmi": 0.5}, 8)
    logger.log_metrics({"finetune/loss": 2.0}, 8)
    assert [row["step"] for row in read_csv(path)] == [8, 8]


@pytest.mark.parametrize("cut", range(1, len("finetune,8,0.125\n")))
def test_a_line_cut_off_by_a_kill_is_dropped(path: Path, cut: int):
    logger = PhaseCsv(path, "finetune")
    logger.log_metrics({"loss": 0.5}, 4)
    whole = read_csv(path)
    logger.log_metrics({"loss": 0.125}, 8)
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_csv(path) == whole
    PhaseCsv(path, "finetune").log_metrics({"loss": 0.125}, 8)
    assert path.read_text() == "phase,step,loss\nfinetune,4,0.5\nfinetune,8,0.125\n"


def test_round_trip(path: Path):
    rows = [
        {"phase": "pretrain", "step": 4, "pretrain/loss": 0.1},
        {"phase": "finetune", "step": 0, "cluster/nmi": 1 / 3},
        {"phase": "finetune", "step": 123456789, "finetune/loss": 1e-30, "cluster/nmi": 0.0},
    ]
    write_csv(path, rows)
    assert read_csv(path) == rows
    again = path.with_name("again.csv")
    write_csv(again, read_csv(path))
    assert again.read_bytes() == path.read_bytes()
    assert [type(row["step"]) for row in read_csv(path)] == [int] * 3


def test_nan_comes_back(path: Path):
    write_csv(path, [{"phase": "p", "step": 1, "loss": math.nan}])
    assert math.isnan(read_csv(path)[0]["loss"])


def test_columns_are_in_order_of_appearance():
    rows = [{"phase": 0, "b": 1}, {"phase": 0, "a": 1}, {"a": 1, "c": 1}]
    assert list(columns(rows)) == ["phase", "b", "a", "c"]


def test_an_empty_file_has_no_rows(path: Path):
    path.touch()
    assert read_csv(path) == []
