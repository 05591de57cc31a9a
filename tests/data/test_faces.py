"""YouTube Faces, on generated files in the layout of its archive."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clusterlab.data.faces import ytf
from clusterlab.errors import UserError
from clusterlab.training import run

VIDEOS = {"Aaron_Eckhart": {0: [555, 60], 10: [7]}, "Abba_Eban": {1: [1, 2]}, "Zoe": {3: [9]}}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Frames of 32 x 24 pixels: a square face, grey by its number, on a blue ground."""
    root = tmp_path / "aligned_images_DB"
    value = 0
    for subject, videos in VIDEOS.items():
        for video, frames in videos.items():
            folder = root / subject / str(video)
            folder.mkdir(parents=True)
            for frame in frames:
                image = np.zeros((24, 32, 3), dtype=np.uint8)
                image[..., 2] = 255
                value += 40
                image[6:18, 10:22] = value
                name = f"aligned_detect_{video}.{frame}.jpg"
                Image.fromarray(image).save(folder / name, quality=100, subsampling=0)
    (root / "Zoe" / "labeled_faces.txt").touch()
    return root


def test_first_subjects_in_order_of_video_and_frame(archive: Path) -> None:
    samples = ytf(str(archive), subjects=2, size=10)
    assert samples.x.shape == (5, 3, 10, 10)
    assert samples.files is not None
    assert [Path(file).name.removeprefix("aligned_detect_") for file in samples.files] == [
        *("0.60.jpg", "0.555.jpg", "10.7.jpg", "1.1.jpg", "1.2.jpg"),
    ]
    assert samples.y is not None
    assert samples.y.tolist() == [0, 0, 0, 1, 1]
    assert samples.class_names == ("Aaron Eckhart", "Abba Eban")


def test_the_middle_square_is_kept(archive: Path) -> None:
    """Half of the shorter side is the 12 pixels of the face: grey all over."""
    faces = ytf(str(archive), subjects=2, size=12).x.float()
    for face, value in zip(faces, (80, 40, 120, 160, 200), strict=True):
        assert (face[:, 1:-1, 1:-1] - value).abs().max() < 8
    wide = ytf(str(archive), subjects=2, size=24, crop=1.0).x.float()
    assert (wide[:, 2, 0] > 200).all()  # the ground
    assert (wide[:, :, 12, 12] - faces[:, :, 6, 6]).abs().max() < 8


def test_as_many_as_asked_evenly_spaced(archive: Path) -> None:
    samples = ytf(str(archive), subjects=3, n_samples=3, size=10)
    assert samples.files is not None
    assert samples.files[0].endswith("0.60.jpg")
    assert samples.files[-1].endswith("3.9.jpg")
    assert len(samples) == 3
    assert len(ytf(str(archive), subjects=3, n_samples=None, size=10)) == 6


def test_another_folder_is_refused(archive: Path, tmp_path: Path) -> None:
    for path in (archive, tmp_path / "nothing"):
        with pytest.raises(UserError, match=r"Expected 41 subjects as folders in .*; unpack"):
            ytf(str(path))
    (archive / "Abba_Eban" / "1").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"Expected <video>/\*\.jpg in .*Abba_Eban, got none"):
        ytf(str(archive), subjects=2)
    with pytest.raises(UserError, match=r"Expected data\.crop above 0"):
        ytf(str(archive), subjects=1, crop=0)


def test_colour_images_train_end_to_end(archive: Path, compose) -> None:
    little = (
        *("model=idcec", "network.filters=[2,3,4]", "model.classifier.filters=[2,3]"),
        *("phases.pretrain.max_epochs=1", "phases.finetune.max_steps=2", "trainer=cpu"),
        *("phases.retrain.max_epochs=1", "data.batch_size=3", "data.subjects=2"),
    )
    record = run(compose("data=ytf", f"data.path={archive}", "data.size=16", *little))
    assert record["n_samples"] == 5
    assert record["metrics"]["accuracy"] is not None
    assert record["config"]["network"]["input_shape"] == [3, 16, 16]
