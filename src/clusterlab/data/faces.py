"""YouTube Faces, from the folder its public archive unpacks to."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from clusterlab.data.images import decode
from clusterlab.data.samples import Samples
from clusterlab.errors import problem

HOME = "https://www.cs.tau.ac.il/~wolf/ytfaces"


def ytf(
    path: str,
    subjects: int = 41,
    n_samples: int | None = 10_000,
    size: int = 55,
    crop: float = 0.5,
    name: str = "ytf",
) -> Samples:
    """Load the faces of the first subjects in alphabetical order, their names as classes.

    The archive has ``<subject>/<video>/aligned_detect_<video>.<frame>.jpg``, or without
    ``aligned_detect_`` where faces are not aligned. Papers cluster 10,000 faces of 41 subjects at
    55 x 55 pixels in colour, and do not say which frames or how much around a face: here evenly
    spaced ones of all frames in order, and the middle of each.

    Args:
        path: The folder ``aligned_images_DB``.
        subjects: How many subjects.
        n_samples: How many faces; ``None`` for all, also where there are fewer.
        size: Side of the square that each face is brought to.
        crop: Share of the shorter side that is kept, a square in the middle.
        name: What the records call the set.

    Returns:
        Images, shape ``(N, 3, size, size)``, ``uint8``, sorted by subject, video and frame.

    Raises:
        UserError: The folder is not of this layout or has too few subjects.
    """
    root = Path(path).expanduser()
    folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    if len(folders) < subjects:
        raise problem(
            f"{subjects} subjects as folders in {root}",
            f"{len(folders)}",
            f"unpack aligned_images_DB.tar.gz of {HOME} there, or set data.subjects",
        )
    if not 0 < crop <= 1:
        raise problem("data.crop above 0 and up to 1", crop, "set data.crop=0.5")
    files, y = [], []
    for number, folder in enumerate(folders[:subjects]):
        frames = sorted(folder.glob("*/*.jpg"), key=_video_and_frame)
        if not frames:
            raise problem(f"<video>/*.jpg in {folder}", "none", "unpack the archive again")
        files += frames
        y += [number] * len(frames)
    if n_samples is not None and len(files) > n_samples:
        kept = np.linspace(0, len(files) - 1, n_samples).round().astype(int).tolist()
        files, y = [files[i] for i in kept], [y[i] for i in kept]
    with ThreadPoolExecutor() as pool:
        faces = list(pool.map(lambda file: decode(file, 3, (size, size), crop), files))
    names = tuple(folder.name.replace("_", " ") for folder in folders[:subjects])
    relative = tuple(file.relative_to(root).as_posix() for file in files)
    x = torch.from_numpy(np.stack(faces))
    return Samples(name, x, torch.tensor(y), relative, names)


def _video_and_frame(file: Path) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", f"{file.parent.name}/{file.stem}")))
