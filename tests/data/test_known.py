"""Known labels: which are drawn, what a user's file may hold, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clusterlab.data.known import draw, given
from clusterlab.data.known import known_labels as labels_and_names
from clusterlab.data.samples import Samples
from clusterlab.errors import UserError

SIZES = (500, 301, 150, 49)


def samples(**changes: object) -> Samples:
    y = torch.repeat_interleave(torch.arange(4), torch.tensor(SIZES))
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    content: dict[str, object] = {"name": "four", "x": torch.zeros(len(y), 1, 8, 8), "y": y}
    return Samples(**{**content, **changes})  # type: ignore[arg-type]


def known_labels(*arguments: Any, **named: Any) -> Tensor:
    """Return the labels without the names."""
    return labels_and_names(*arguments, **named)[0]


def counts(known: Tensor) -> list[int]:
    return torch.bincount(known + 1, minlength=5).tolist()


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.333, 0.5, 1.0])
def test_a_stratified_share_is_in_proportion(share: float) -> None:
    found = samples()
    assert found.y is not None
    known = draw(found.y, share, stratified=True, seed=1)
    unknown, *drawn = counts(known)
    assert sum(drawn) == round(share * 1000) == 1000 - unknown
    assert all(abs(n - share * size) < 1 for n, size in zip(drawn, SIZES, strict=True))
    assert torch.equal(known[known >= 0], found.y[known >= 0])


def test_a_plain_share_is_of_all_samples() -> None:
    """Over many draws a class has its hypergeometric mean and deviation."""
    y = samples().y
    assert y is not None
    drawn = np.array([counts(draw(y, 0.1, False, seed))[1:] for seed in range(300)])
    assert (drawn.sum(1) == 100).all()
    mean = 100 * np.array(SIZES) / 1000
    deviation = np.sqrt(mean * (1 - np.array(SIZES) / 1000) * 900 / 999)
    assert np.allclose(drawn.mean(0), mean, atol=4 * deviation.max() / 300**0.5)
    assert np.allclose(drawn.std(0), deviation, rtol=0.2)


def test_a_whole_number_is_of_each_class() -> None:
    known = known_labels(samples(), 50, True, 4, seed=0)
    assert counts(known) == [801, 50, 50, 50, 49]
    assert counts(known_labels(samples(), 0, True, 4, seed=0)) == [1000, 0, 0, 0, 0]
    for stratified in (True, False):
        assert counts(known_labels(samples(), 1.0, stratified, 4, seed=0))[0] == 0  # all, not one
    assert counts(known_labels(samples(), 1, False, 4, seed=0)) == [996, 1, 1, 1, 1]


def test_the_seed_decides_the_draw() -> None:
    first, again, other = (known_labels(samples(), 0.1, True, 4, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_files_of_known_labels(tmp_path: Path) -> None:
    """Numbers or names, one a sample or one a row."""
    files = tuple(f"{i}.png" for i in range(1000))
    bare = samples(y=None, files=files)
    named = samples(files=files, class_names=("cat", "dog", "5", "eel"))
    expected = torch.full((1000,), -1)
    expected[torch.tensor([3, 700])] = torch.tensor([1, 2])
    np.save(tmp_path / "known.npy", expected.numpy())
    (tmp_path / "index.csv").write_text("index,label\n3,1\n700,2\n8,-1\n9,\n")
    (tmp_path / "file.csv").write_text("file,label\n3.png,1\n700.png,2\n")
    for name in ("known.npy", "index.csv", "file.csv"):
        assert torch.equal(known_labels(bare, str(tmp_path / name), True, 4, 0), expected), name
    (tmp_path / "names.csv").write_text("file,label\n3.png,dog\n700.png,5\n")
    assert torch.equal(known_labels(named, str(tmp_path / "names.csv"), True, 4, 0), expected)


def write(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.write_text(text, encoding=encoding)
    return str(path)


def some(**places: int) -> list[int]:
    """Labels of the first ten samples: ``_3=1`` is a 1 for sample 3."""
    return [places.get(f"_{i}", -1) for i in range(10)]


def test_classes_named_by_numbers_are_meant_by_name(tmp_path: Path) -> None:
    """Of classes 1, 2 and 3 a 1 is the first and a 0 is none."""
    named = samples(class_names=("1", "2", "3", "7"))
    path = write(tmp_path / "a.csv", "index,label\n0,1\n4,3\n5,7\n6,-1\n")
    assert known_labels(named, path, True, 4, 0)[:10].tolist() == some(_0=0, _4=2, _5=3)
    with pytest.raises(UserError, match="a label of 1, 2, 3, 7, or -1, got '0'"):
        known_labels(named, write(tmp_path / "b.csv", "index,label\n0,0\n"), True, 4, 0)
    words = samples(class_names=("a", "b", "c", "d"))
    path = write(tmp_path / "c.csv", "index,label\n0,1\n4,c\n")
    assert known_labels(words, path, True, 4, 0)[:10].tolist() == some(_0=1, _4=2)


def test_a_class_cannot_be_called_unknown(tmp_path: Path) -> None:
    signs = samples(class_names=("-1", "1", "2", "3"))
    with pytest.raises(UserError, match="leaves unknown, got a class of that name; renumber"):
        known_labels(signs, write(tmp_path / "a.csv", "index,label\n0,1\n"), True, 4, 0)


def test_the_file_may_name_the_classes(tmp_path: Path) -> None:
    """Data without any truth have no names of their own; a spreadsheet signs its CSV."""
    text = "index,label\n0,owl\n3,ant\n4, owl\n5\n"
    path = write(tmp_path / "a.csv", text, encoding="utf-8-sig")
    known, names = labels_and_names(samples(y=None), path, True, 4, 0)
    assert known[:10].tolist() == some(_0=1, _3=0, _4=1)
    assert names == ("ant", "owl")
    assert labels_and_names(samples(class_names=("a", "b", "c", "d")), 0.5, True, 4, 0)[1] == (
        *("a", "b", "c", "d"),
    )
    assert labels_and_names(samples(), 0.5, True, 4, 0)[1] == ()
    with pytest.raises(UserError, match="classes for 1 clusters, got a class of number 1"):
        known_labels(samples(y=None), path, True, 1, 0)


def test_whole_floats_are_labels(tmp_path: Path) -> None:
    labels = np.full(1000, -1.0)
    labels[3] = 2
    np.save(tmp_path / "a.npy", labels)
    known = known_labels(samples(y=None), str(tmp_path / "a.npy"), True, 4, 0)
    assert known[:10].tolist() == some(_3=2)


def test_a_share_that_misses_a_class_is_told_what_helps() -> None:
    with pytest.raises(UserError, match=r"got none of owl, eel; raise data.labelled\.$"):
        known_labels(samples(class_names=("cat", "dog", "owl", "eel")), 0.002, True, 4, 0)
    with pytest.raises(UserError, match=r"raise data.labelled, or set data.stratified=true or "):
        known_labels(samples(class_names=("cat", "dog", "owl", "eel")), 0.002, False, 4, 0)


@pytest.mark.parametrize(
    ("labelled", "message"),
    [
        (-0.1, r"got data.labelled=-0.1"),
        (float("nan"), r"got data.labelled=nan"),
        (1.5, r"at most 1.0, got data.labelled=1.5"),
        (True, r"got data.labelled=True"),
        (None, r"got data.labelled=None"),
        (0.001, r"a labelled sample of every class, got none of dog, 5, eel; raise data.labelled"),
        ("none.csv", r"a file of known labels, got nothing at none.csv"),
    ],
)
def test_what_cannot_be_drawn_is_refused(labelled: object, message: str) -> None:
    named = samples(class_names=("cat", "dog", "5", "eel"))
    with pytest.raises(UserError, match=message):
        known_labels(named, labelled, True, 4, 0)  # type: ignore[arg-type]


def test_labels_are_needed_to_draw_from_and_clusters_to_hold_them() -> None:
    with pytest.raises(UserError, match="labels to draw from, got none in 'four'"):
        known_labels(samples(y=None), 0.1, True, 4, 0)
    with pytest.raises(UserError, match="classes for 3 clusters, got a class of number 3"):
        known_labels(samples(), 0.1, True, 3, 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "name,label\n", "the columns index,label, got name,label"),
        ("b.csv", "", "the columns index,label, got in "),
        ("c.csv", "file,label\nx,1\n", "the columns index,label, got file,label"),
        ("d.csv", "index,label\n1000,1\n", "a sample's index, got '1000'"),
        ("e.csv", "index,label\n1,4\n", "a label of 0 to 3, or -1, got '4'"),
        ("f.csv", "index,label\n1,1\n1,1\n1,2\n", "got '1' and '2' for 1 in .*; remove one"),
        ("g.npy", np.zeros(999), r"shape \(1000,\) .* got \(999,\)"),
        ("h.npy", np.full(1000, 0.5), r"whole numbers in .*h.npy, got 0.5; correct it"),
        ("l.npy", np.full(1000, np.nan), "got nan; correct it"),
        ("i.npy", "no array", r"labels in .*i.npy, got the error .*; save it again"),
        ("j.npy", np.array([{}] * 1000), r"labels in .*j.npy, got the error .*; save it again"),
        ("k.csv", "index,label\n1,\udcff\n", r"labels in .*k.csv, got the error .*; save it again"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: object, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, str):
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    else:
        np.save(path, content)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        known_labels(samples(y=None), str(path), True, 4, 0)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, 1], r"y of shape \(3,\), got \(2,\); give one label a sample, -1 where it is unknown"),
        ([[0], [1], [0]], r"y of shape \(3,\), got \(3, 1\)"),
        ("none", r"y of shape \(3,\), got \(\)"),
        (
            [0, 1, 2],
            "classes from 0 to 1 in y, or -1 for unknown, got 2; number them from 0, or raise n_",
        ),
        ([0, 1, -2], "got -2"),
        ([0, 1, 0.5], "got 0.5"),
        ([0, 1, float("nan")], "got nan"),
        (["cat", "dog", "cat"], "got 'cat'"),
        ([0, 1, None], "got None"),
    ],
)
def test_labels_of_a_program_are_numbers_of_classes(y: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        given(y, n_samples=3, n_clusters=2)  # type: ignore[arg-type]
