import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.cluster import KMeans

from clusterlab.data.text import documents, term_counts, tf_idf
from clusterlab.errors import UserError
from clusterlab.metrics import accuracy, contingency, nmi


def counted(n: int = 12, m: int = 9) -> Any:
    return np.random.default_rng(0).poisson(0.7, (n, m))


@pytest.mark.parametrize("sublinear", [True, False])
@pytest.mark.parametrize("n_terms", [4, 9, 2000])
def test_tf_idf_term_by_term(n_terms: int, sublinear: bool) -> None:
    counts = counted()
    n, m = counts.shape
    kept = sorted(sorted(range(m), key=lambda j: (-counts[:, j].sum(), j))[:n_terms])
    expected = np.zeros((n, len(kept)))
    for i in range(n):
        for column, j in enumerate(kept):
            tf = counts[i, j]
            if tf:
                weight = 1 + math.log(tf) if sublinear else tf
                having = sum(counts[k, j] > 0 for k in range(n))
                expected[i, column] = weight * (1 + math.log((1 + n) / (1 + having)))
        length = math.sqrt(sum(value**2 for value in expected[i]))
        expected[i] *= math.sqrt(len(kept)) / length if length else 0
    got = tf_idf(scipy.sparse.csr_matrix(counts), n_terms, sublinear)
    assert got.dtype == np.float32
    assert np.allclose(got, expected, atol=1e-6)


def test_documents_without_a_term_are_zero_and_told(caplog: pytest.LogCaptureFixture) -> None:
    counts = scipy.sparse.csr_matrix([[5, 0], [5, 0], [0, 1]])
    with caplog.at_level("WARNING", logger="clusterlab"):
        assert tf_idf(counts, n_terms=1).tolist() == [[1], [1], [0]]
    assert "1 of 3 documents have none of the 1 terms" in caplog.text


def test_the_largest_classes(prepared_root: Path) -> None:
    root = str(prepared_root)
    four = documents("four", "reuters21578", root, classes=4)
    assert four.x.shape == (6387, 2000)
    assert four.y is not None
    assert torch.bincount(four.y).tolist() == [3713, 2055, 321, 298]
    assert torch.allclose(four.x.square().mean(1), torch.ones(6387), atol=1e-5)
    assert not four.are_images
    news = documents("news", "newsgroups20", root)
    assert (len(news), news.n_classes) == (18846, 20)
    assert news.class_names is not None
    assert (news.class_names[0], news.class_names[-1]) == ("alt.atheism", "talk.religion.misc")
    with pytest.raises(UserError, match=r"data\.classes from 2 to 65, got 66; correct it"):
        documents("many", "reuters21578", root, classes=66)


@pytest.mark.slow
def test_kmeans_has_the_scores_of_the_data_readme(prepared_root: Path) -> None:
    """Made by others from the same documents, without the logarithm: 0.544 and 0.333."""
    samples = documents("four", "reuters21578", str(prepared_root), classes=4, sublinear=False)
    labels = KMeans(4, n_init=10, random_state=0).fit_predict(samples.x.numpy())
    assert samples.y is not None
    table = contingency(samples.y, torch.from_numpy(labels).long(), 4, 4)
    assert round(float(accuracy(table)), 3) == 0.544
    assert round(float(nmi(table)), 3) == 0.333


# --- a user's own counts


def saved(path: Path, counts: Any, **more: Any) -> str:
    rows = scipy.sparse.csr_matrix(counts)
    arrays = {"data": rows.data, "indices": rows.indices, "indptr": rows.indptr}
    np.savez(path, **{**arrays, "shape": np.array(rows.shape), **more})
    return str(path)


def test_what_scipy_saves_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    rows = scipy.sparse.csr_matrix(counted())
    scipy.sparse.save_npz(path, rows)
    got = term_counts(str(path), n_terms=5)
    assert (got.name, got.y) == ("mine", None)
    assert np.array_equal(got.x.numpy(), tf_idf(rows, 5))


def test_labels_may_be_beside(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", counted(), y=np.arange(12) % 3 * 10)
    got = term_counts(path, name="other")
    assert got.y is not None
    assert (got.name, got.class_names) == ("other", ("0", "10", "20"))
    assert got.y.tolist() == [i % 3 for i in range(12)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"format": np.array(b"csc")}, r"a CSR matrix in .*, got csc; save it again"),
        ({"format": np.array(b"csc"), "y": np.arange(3)}, "got csc"),
        ({"indices": np.full(3, 99)}, r"a CSR matrix in .*, got the error"),
        ({"indptr": np.arange(3)}, r"a CSR matrix in .*, got the error"),
        ({"shape": np.array(4)}, r"a CSR matrix in .*, got the error"),
        ({"data": np.array(["a", "b", "c"])}, r"a CSR matrix in .*, got the error"),
        ({"data": np.array([1, -2, 1])}, r"counts of 0 or more in .*, got values such as -2"),
        ({"data": np.array([1, np.nan, 1])}, r"counts of 0 or more in .*, got values such as nan"),
        ({"y": np.arange(4)}, r"y of shape \(3,\)"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    path = saved(tmp_path / "mine.npz", np.eye(3, 5), **more)
    with pytest.raises(UserError, match=message):
        term_counts(path)


def test_no_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"counts of 0 or more in .*, got none"):
        term_counts(saved(tmp_path / "mine.npz", np.zeros((3, 5))))
    np.savez(tmp_path / "images.npz", x=np.zeros((3, 8, 8)))
    with pytest.raises(UserError, match=r"an array data in .*, got x; save it"):
        term_counts(str(tmp_path / "images.npz"))
    with pytest.raises(UserError, match=r"data\.n_terms of 1 or more, got 0; set"):
        term_counts(saved(tmp_path / "good.npz", np.eye(3)), n_terms=0)
