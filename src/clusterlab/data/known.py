"""Known labels: the few that semi-supervised training may read."""

import csv
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from clusterlab.data.samples import Samples
from clusterlab.errors import problem
from clusterlab.seeding import derive_seed

UNKNOWN = -1
HEADS = (["file", "label"], ["index", "label"])


def known_labels(
    samples: Samples, labelled: float | str | None, stratified: bool, n_clusters: int, seed: int
) -> tuple[Tensor, tuple[str, ...]]:
    """Return the labels that training may read, and what their classes are called.

    Args:
        samples: The data set.
        labelled: A share of the samples as a fraction, so many of each class as a whole number, or
            a file of known labels, see ``read``; ``None`` where the samples came with them.
        stratified: Whether a share is drawn from each class in proportion, rather than from all
            samples at random.
        n_clusters: K.
        seed: Seed of the draw.

    Returns:
        Labels in 0..K-1, and -1 where unknown, shape ``(N,)``, ``int64``; the names of classes in
        the order of their numbers, none if they have numbers alone.

    Raises:
        UserError: If the file is not readable as labels, nothing can be drawn, a class of the data
            is left without a label by the draw, or there are more classes than clusters.
    """
    remedy = "set data.labelled to a fraction, a whole number, or a file"
    names = samples.class_names or ()
    if labelled is None and samples.known is not None:
        known = samples.known
    elif isinstance(labelled, str):
        known, names = read(Path(labelled).expanduser(), samples, n_clusters)
    elif isinstance(labelled, bool) or not isinstance(labelled, int | float) or not labelled >= 0:
        raise problem("labels to draw, or a file of them", f"data.labelled={labelled}", remedy)
    elif isinstance(labelled, float) and labelled > 1:
        raise problem("a share of at most 1.0", f"data.labelled={labelled}", remedy)
    elif labelled == 0:
        known = torch.full((len(samples),), UNKNOWN)
    elif samples.y is None:
        got = f"none in '{samples.name}'"
        raise problem("labels to draw from", got, "set data.labelled to a file of known labels")
    else:
        known = draw(samples.y, labelled, stratified, derive_seed(seed, "labelled"))
        left = sorted(set(samples.y.tolist()) - set(known.tolist()))
        if left:
            got = f"none of {', '.join(names[k] if names else str(k) for k in left)}"
            other = "" if stratified else ", or set data.stratified=true or another seed"
            raise problem("a labelled sample of every class", got, f"raise data.labelled{other}")
    if int(known.max()) >= n_clusters:
        got = f"a class of number {int(known.max())}"
        raise problem(f"classes for {n_clusters} clusters", got, "raise n_clusters")
    return known, names


def draw(y: Tensor, labelled: float, stratified: bool, seed: int) -> Tensor:
    """Keep some labels at random, without replacement, and hide the others.

    Args:
        y: Labels of all samples, shape ``(N,)``, ``int64`` in 0..k-1.
        labelled: Share of the samples as a ``float``, or number of each class as an ``int``.
        stratified: Whether a share is kept of each class in proportion: the number of a class is
            then at most one off.
        seed: Seed of the draw.

    Returns:
        The kept labels, and -1 for the others; shape ``(N,)``.

    Example:
        >>> y = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
        >>> known = draw(y, 0.1, stratified=True, seed=0)
        >>> [int((known == k).sum()) for k in range(3)]
        [6, 3, 1]
    """
    order = np.random.default_rng(seed).permutation(len(y))
    shuffled = y.numpy()[order]
    sizes = np.bincount(y.numpy())
    if isinstance(labelled, int):
        wanted = np.minimum(sizes, labelled)
    elif stratified:
        share = labelled * sizes
        wanted = share.astype(int)
        # What rounding down left over goes to the largest remainders.
        missing = round(labelled * len(y)) - wanted.sum()
        wanted[np.argsort(wanted - share, kind="stable")[:missing]] += 1
    else:
        wanted = np.bincount(shuffled[: round(labelled * len(y))], minlength=len(sizes))
    known = torch.full_like(y, UNKNOWN)
    for k, n in enumerate(wanted):
        index = torch.from_numpy(order[shuffled == k][:n])
        known[index] = y[index]
    return known


def read(path: Path, samples: Samples, n_clusters: int) -> tuple[Tensor, tuple[str, ...]]:
    """Read known labels from a file.

    Args:
        path: A ``.npy`` file with one label a sample, -1 where unknown; or a ``.csv`` file with the
            columns ``file,label``, for data of files, or ``index,label``, and a row for each
            labelled sample. A label is the name of a class, or, where no class has a number for a
            name, its number from 0. Where the data have no names, those in the file are taken, in
            alphabetical order.
        samples: The data set.
        n_clusters: K, the number of classes that can be meant.

    Returns:
        Labels, shape ``(N,)``, ``int64``, -1 where unknown; the names of the classes, if any.

    Raises:
        UserError: If it is none of these, or says two things of one sample.
    """
    if not path.is_file():
        raise problem("a file of known labels", f"nothing at {path}", "correct data.labelled")
    found = from_array(path, samples) if path.suffix == ".npy" else from_table(path, samples)
    names = samples.class_names or ()
    if str(UNKNOWN) in names:
        remedy = "renumber the classes of the data, or leave its labels out"
        raise problem(f"-1 for what {path} leaves unknown", "a class of that name", remedy)
    told = set(found.values()) - {"", str(UNKNOWN)}
    if not names and not all(map(is_number, told)):
        names = tuple(sorted(told))
    numbers = {name: k for k, name in enumerate(names)}
    if not any(map(is_number, names)):
        numbers |= {str(k): k for k in range(n_clusters)}
    numbers |= {"": UNKNOWN, str(UNKNOWN): UNKNOWN}
    known = torch.full((len(samples),), UNKNOWN)
    for i, label in found.items():
        if label not in numbers:
            expected = ", ".join(names or (f"0 to {n_clusters - 1}",))
            raise problem(f"a label of {expected}, or -1", f"'{label}' in {path}", "correct it")
        known[i] = numbers[label]
    return known, names


def given(y: ArrayLike, n_samples: int, n_clusters: int) -> Tensor:
    """Take known labels from a program.

    Args:
        y: The number of each sample's class, 0 to K - 1, or -1 where it is unknown; shape ``(N,)``.
        n_samples: N.
        n_clusters: K.

    Returns:
        The same as ``int64``.

    Raises:
        UserError: If they are anything else.

    Example:
        >>> given([1.0, -1, 0], n_samples=3, n_clusters=2)
        tensor([ 1, -1,  0])
    """
    labels = np.asarray(y)
    if labels.shape != (n_samples,):
        remedy = "give one label a sample, -1 where it is unknown"
        raise problem(f"y of shape ({n_samples},)", labels.shape, remedy)
    wrong = [label for label in labels.tolist() if label not in range(UNKNOWN, n_clusters)]
    if wrong:
        expected = f"classes from 0 to {n_clusters - 1} in y, or -1 for unknown"
        raise problem(expected, repr(wrong[0]), "number them from 0, or raise n_clusters")
    return torch.from_numpy(labels.astype(np.int64))


def is_number(text: str) -> bool:
    """Tell whether a label could be a class's number."""
    return text.removeprefix("-").isdecimal()


def from_array(path: Path, samples: Samples) -> dict[int, str]:
    """Read each sample's label from a ``.npy`` file, as text."""
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise problem(
            f"labels in {path}", f"the error {error}", "save it again with numpy.save"
        ) from error
    if labels.shape != (len(samples),):
        remedy = "give one label a sample, -1 where it is unknown"
        raise problem(f"shape ({len(samples)},) in {path}", labels.shape, remedy)
    if np.issubdtype(labels.dtype, np.floating):
        if (part := labels[labels != labels.round()]).size:
            raise problem(f"whole numbers in {path}", part[0], "correct it")
        labels = labels.astype(np.int64)
    return {i: str(label).strip() for i, label in enumerate(labels.tolist())}


def from_table(path: Path, samples: Samples) -> dict[int, str]:
    """Read the labels of some samples from a ``.csv`` file, as text, by the sample's number."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets sign their files
            table = csv.DictReader(file)
            rows, heads = list(table), list(table.fieldnames or [])
    except (OSError, ValueError, csv.Error) as error:
        remedy = "save it again as a CSV in UTF-8"
        raise problem(f"labels in {path}", f"the error {error}", remedy) from error
    if heads not in HEADS or (heads[0] == "file" and samples.files is None):
        expected = "a .npy file, or a CSV with the columns index,label"
        expected += "" if samples.files is None else " or file,label"
        raise problem(expected, f"{','.join(heads)} in {path}", "correct its first line")
    places = {name: i for i, name in enumerate(samples.files or ())}
    if heads[0] == "index":
        places = {str(i): i for i in range(len(samples))}
    found: dict[int, str] = {}
    for row in rows:
        name, label = row[heads[0]], (row["label"] or "").strip()
        if name not in places:
            raise problem(f"a sample's {heads[0]}", f"'{name}' in {path}", "correct the row")
        if found.setdefault(places[name], label) != label:
            got = f"'{found[places[name]]}' and '{label}' for {name} in {path}"
            raise problem("one label a sample", got, "remove one of the rows")
    return found
