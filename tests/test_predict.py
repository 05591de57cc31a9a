"""Label new images with a finished run."""

import csv
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig
from PIL import Image

from clusterlab.errors import UserError
from clusterlab.predict import load, main
from clusterlab.training import run
from conftest import LITTLE, Commands, composed

Finished = tuple[DictConfig, dict[str, Any]]
Predict = Callable[..., tuple[int, str, str]]


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch, called: Callable[..., Any], tmp_path: Path) -> Predict:
    """Call the command line in this process; return its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)
    return partial(called, main)


@pytest.fixture
def x(little_npz: Path) -> np.ndarray:
    return np.load(little_npz)["x"]


@pytest.fixture
def stored(finished: Finished) -> dict[str, np.ndarray]:
    with np.load(Path(finished[0].run_dir) / "assignments.npz") as file:
        return {name: file[name] for name in file.files}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def to_png(image: np.ndarray, path: Path, factor: int = 1) -> None:
    picture = Image.fromarray((image * 255).round().astype(np.uint8))
    picture.resize((8 * factor, 8 * factor), Image.Resampling.NEAREST).save(path)


def one_error(code: int, out: str, err: str) -> str:
    assert code == 1
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("Error: ")
    return line


def test_the_training_data_get_their_own_labels(
    finished: Finished, stored: dict[str, np.ndarray], x: np.ndarray
) -> None:
    labels, q = load(finished[0].run_dir).predict(x)
    assert np.array_equal(labels, stored["label"])
    assert np.array_equal(q, stored["q"])
    assert q.dtype == np.float32
    assert len(set(labels)) > 1


def test_any_layout_of_the_axes(
    finished: Finished, stored: dict[str, np.ndarray], x: np.ndarray
) -> None:
    predictor = load(finished[0].run_dir)
    for images in (x[:, 0], x.transpose(0, 2, 3, 1), x.astype(np.float64)):
        assert np.array_equal(predictor.predict(images)[1], stored["q"])
    labels, q = predictor.predict(x[:1])
    assert labels.shape == (1,)
    np.testing.assert_allclose(q, stored["q"][:1], atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 9, 8), (3, 8, 8, 3), (3, 3, 8, 8)])
def test_images_of_another_size_are_refused(finished: Finished, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="Expected images of 8x8 pixels, 1 channel, got "):
        load(finished[0].run_dir).predict(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("images", [np.full((2, 8, 8), 2.0), np.zeros((2, 8, 8), int)])
def test_values_out_of_range_are_refused(finished: Finished, images: np.ndarray) -> None:
    with pytest.raises(UserError, match="the samples"):
        load(finished[0].run_dir).predict(images)


def test_an_npz_file(
    finished: Finished, predict: Predict, little_npz: Path, stored: dict[str, np.ndarray]
) -> None:
    """One row a sample: index, label and q to six digits, in the order of the file."""
    code, out, err = predict(f"run={finished[0].run_dir}", f"input={little_npz}")
    assert (code, err) == (0, "")
    sizes = " ".join(map(str, np.bincount(stored["label"], minlength=5)))
    assert out == f"200 samples, cluster sizes {sizes}, written to predictions.csv\n"
    rows = table(Path("predictions.csv"))
    assert list(rows[0]) == ["index", "label", "q0", "q1", "q2", "q3", "q4"]
    assert [int(row["index"]) for row in rows] == list(range(200))
    assert [int(row["label"]) for row in rows] == stored["label"].tolist()
    q = [[float(row[f"q{j}"]) for j in range(5)] for row in rows]
    np.testing.assert_allclose(q, stored["q"], rtol=5e-6)


def test_a_folder_whose_images_have_other_sizes(
    finished: Finished, predict: Predict, tmp_path: Path, x: np.ndarray
) -> None:
    """They are brought to the size of the run; rows carry the names of the files."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for i, factor in enumerate((1, 2, 5)):
        to_png(x[i, 0], tmp_path / "in" / f"{i}.png", factor)
    to_png(x[3, 0], tmp_path / "in" / "deep" / "z.png")
    colour = Image.open(tmp_path / "in" / "0.png").convert("RGB")
    colour.save(tmp_path / "in" / "colour.png")
    given = (f"run={finished[0].run_dir}", "input=in", "output=out.csv")
    code, out, _ = predict(*given)
    assert code == 0
    assert out.startswith("5 samples, ")
    assert out.endswith("written to out.csv\n")
    assert not Path("predictions.csv").exists()
    rows = table(Path("out.csv"))
    assert list(rows[0])[:3] == ["index", "file", "label"]
    assert [row["file"] for row in rows] == ["0.png", "1.png", "2.png", "colour.png", "deep/z.png"]
    q = {row["file"]: [float(row[f"q{j}"]) for j in range(5)] for row in rows}
    rounded = (x[[0, 3]] * 255).round().astype(np.uint8)
    expected = load(finished[0].run_dir).predict(rounded)[1]
    np.testing.assert_allclose(q["0.png"], expected[0], rtol=1e-4)
    np.testing.assert_allclose(q["deep/z.png"], expected[1], rtol=1e-4)
    assert q["colour.png"] == q["0.png"]


def test_one_image(finished: Finished, predict: Predict, tmp_path: Path, x: np.ndarray) -> None:
    to_png(x[7, 0], tmp_path / "seven.png", 3)
    code, out, _ = predict(f"run={finished[0].run_dir}", "input=seven.png")
    assert code == 0
    assert out.startswith("1 samples, ")
    (row,) = table(Path("predictions.csv"))
    assert (row["index"], row["file"]) == ("0", "seven.png")
    q = [float(row[f"q{j}"]) for j in range(5)]
    assert int(row["label"]) == int(np.argmax(q))
    assert sum(q) == pytest.approx(1, abs=1e-4)


def test_the_training_data_need_not_be_there(
    tmp_path: Path, little_npz: Path, commands: Commands
) -> None:
    """In a process of its own, from the run's folder moved elsewhere, with nothing else left."""
    made = tmp_path / "made"
    made.mkdir()
    data = Path(shutil.copy(little_npz, made / "mine.npz"))
    short = ("phases.pretrain.max_epochs=1", "phases.finetune.max_steps=1")
    run(composed(made, *LITTLE, f"data.path={data}", *short))
    (made / "run").rename(tmp_path / "moved")
    new = tmp_path / "new.npz"
    np.savez(new, x=np.load(data)["x"][:7])
    q = np.load(tmp_path / "moved" / "assignments.npz")["q"][:7]
    shutil.rmtree(made)
    done = commands.run(f"run={tmp_path / 'moved'}", f"input={new}", program="predict")
    assert done.code == 0, done.stderr
    rows = table(tmp_path / "predictions.csv")
    np.testing.assert_allclose(
        [[float(row[f"q{j}"]) for j in range(5)] for row in rows], q, rtol=1e-4
    )


def test_colour(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "colour.npz", x=x)
    short = ("phases.pretrain.max_epochs=1", "phases.finetune.max_steps=1", "n_clusters=3")
    overrides = [override for override in LITTLE if not override.startswith("n_clusters")]
    cfg = composed(tmp_path, *overrides, f"data.path={tmp_path / 'colour.npz'}", *short)
    run(cfg)
    predictor = load(cfg.run_dir)
    assert predictor.input_shape == (3, 8, 8)
    q = np.load(Path(cfg.run_dir) / "assignments.npz")["q"]
    assert np.array_equal(predictor.predict(x)[1], q)
    assert np.array_equal(predictor.predict(x.transpose(0, 3, 1, 2))[1], q)
    with pytest.raises(
        UserError, match="8x8 pixels, 3 channels, got images of 8x8 pixels, 1 channel"
    ):
        predictor.predict(x[..., 0])


# What a user can get wrong, in one line each


def test_no_run_folder(predict: Predict, tmp_path: Path, little_npz: Path) -> None:
    line = one_error(*predict(f"run={tmp_path / 'nowhere'}", f"input={little_npz}"))
    assert f"no config.yaml in {tmp_path / 'nowhere'}" in line


def test_an_unfinished_run(
    finished: Finished, predict: Predict, tmp_path: Path, little_npz: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished[0].run_dir, copy)
    (copy / "finetune" / "phase.json").unlink()
    line = one_error(*predict(f"run={copy}", f"input={little_npz}"))
    assert f"Expected a finished run in {copy}, got no finished finetune" in line
    assert not Path("predictions.csv").exists()


def test_an_array_of_another_size(finished: Finished, predict: Predict, tmp_path: Path) -> None:
    np.savez(tmp_path / "new.npz", x=np.zeros((3, 16, 16), np.uint8))
    line = one_error(*predict(f"run={finished[0].run_dir}", "input=new.npz"))
    assert "Expected images of 8x8 pixels, 1 channel, got images of 16x16 pixels, 1 channel" in line


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.txt", b"no images", "an npz file .*notes.txt"),
        ("broken.png", b"no image", "an image .*broken.png"),
        ("none.npz", None, "a file .*none.npz, got nothing there"),
        ("empty", "folder", "none among 0 files"),
    ],
)
def test_an_input_that_is_none(
    finished: Finished,
    predict: Predict,
    tmp_path: Path,
    name: str,
    content: bytes | str | None,
    said: str,
) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content:
        (tmp_path / name).mkdir()
    line = one_error(*predict(f"run={finished[0].run_dir}", f"input={name}"))
    assert re.search(said, line), line


@pytest.mark.parametrize(
    "arguments",
    [[], ["run={run}"], ["input=a.npz"], ["run={run}", "input=a", "k=3"], ["{run}", "a.npz"]],
)
def test_arguments_that_are_missing_or_unknown(
    finished: Finished, predict: Predict, arguments: list[str]
) -> None:
    given = [argument.format(run=finished[0].run_dir) for argument in arguments]
    line = one_error(*predict(*given))
    assert "predict.py run=<run folder> input=<npz, image folder or image>" in line
    assert (" ".join(given) or "nothing") in line


def test_an_output_that_cannot_be_written(
    finished: Finished, predict: Predict, little_npz: Path
) -> None:
    given = (f"run={finished[0].run_dir}", f"input={little_npz}", "output=none/here.csv")
    assert "none" in one_error(*predict(*given))


def test_a_folder_named_like_a_number(
    finished: Finished, predict: Predict, tmp_path: Path, x: np.ndarray
) -> None:
    """``input=2024`` is a folder's name."""
    (tmp_path / "2024").mkdir()
    to_png(x[0, 0], tmp_path / "2024" / "a.png")
    code, out, err = predict(f"run={finished[0].run_dir}", "input=2024")
    assert (code, err) == (0, "")
    assert out.startswith("1 samples")


def test_vectors(tmp_path: Path, predict: Predict) -> None:
    """A network of convolutions makes way, pictures are not asked for, and vectors are labelled."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(5 * i, 1, (20, 7)) for i in range(3)])
    np.savez(tmp_path / "vectors.npz", x=x, y=np.repeat(np.arange(3), 20))
    cfg = composed(
        tmp_path / "run",
        *LITTLE,
        "data=npz",
        f"data.path={tmp_path / 'vectors.npz'}",
        "figures=true",
    )
    record = run(cfg)
    assert record["config"]["network"] == {
        "_target_": "clusterlab.networks.MLPAutoencoder",
        "input_shape": [7],
        "embedding_dim": 5,
        "hidden": [500, 500, 2000],
        "scale": pytest.approx(1 / x.std()),
        "shift": pytest.approx(x.mean()),
    }
    drawn = {path.stem for path in (Path(cfg.run_dir) / "figures").iterdir()}
    assert drawn == {"embedding", "learning_curves", "confusion"}
    labels, q = load(cfg.run_dir).predict(x)
    with np.load(Path(cfg.run_dir) / "assignments.npz") as stored:
        assert np.array_equal(labels, stored["label"])
        assert np.allclose(q, stored["q"], atol=1e-6)
    assert predict(f"run={cfg.run_dir}", "input=vectors.npz")[0] == 0
    np.savez(tmp_path / "others.npz", x=x[:, :5])
    line = one_error(*predict(f"run={cfg.run_dir}", "input=others.npz"))
    assert "Expected vectors of 7 numbers, got vectors of 5 numbers" in line


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=idcec",), "^Expected images for IDCEC, got vectors; set model=cdc, dec or idec.$"),
        (("model=icae",), "^Expected images for ICAE, got vectors; set model=cdc, dec or idec.$"),
        (("augment@phases.finetune.augment=affine",), "images to augment in finetune, got vectors"),
    ],
)
def test_what_vectors_cannot_have(tmp_path: Path, overrides: Any, message: str) -> None:
    np.savez(tmp_path / "vectors.npz", x=np.zeros((300, 7)))
    where = f"data.path={tmp_path / 'vectors.npz'}"
    with pytest.raises(UserError, match=message):
        run(composed(tmp_path / "run", *overrides, "data=npz", where, "n_clusters=2"))
