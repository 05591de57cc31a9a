"""Documents as tf-idf vectors of their most frequent terms."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfTransformer

from clusterlab.data.download import CLASS_NAMES
from clusterlab.data.samples import Samples
from clusterlab.data.sources import array, prepared_arrays, read_arrays
from clusterlab.errors import problem

log = logging.getLogger(__name__)

CSR = ("data", "indices", "indptr", "shape")


def tf_idf(counts: csr_matrix, n_terms: int = 2000, sublinear: bool = True) -> NDArray[np.float32]:
    r"""Weigh the most frequent terms of documents by tf-idf.

    .. math:: x_{ij} \propto (1 + \log n_{ij}) \left(1 + \log \frac{1 + N}{1 + N_j}\right)

    with n_ij the count of term j in document i and N_j the number of documents that have it, as
    DEC's and CDC's code prepare Reuters. A document's vector has the length sqrt(n_terms), and so
    a mean square of 1, which is what DEC's network expects.

    Args:
        counts: Term counts, shape ``(N, M)``.
        n_terms: How many terms are kept, those with the largest count over all documents; all M
            where there are fewer.
        sublinear: Whether a term's weight grows with the logarithm of its count, else with the
            count.

    Returns:
        Shape ``(N, min(n_terms, M))``; a document without any of the terms is all zero.

    Example:
        >>> tf_idf(csr_matrix([[3, 0, 1], [1, 0, 0], [2, 9, 0]]), n_terms=2).round(2)
        array([[1.41, 0.  ],
               [1.41, 0.  ],
               [0.42, 1.35]], dtype=float32)
    """
    totals = np.asarray(counts.sum(axis=0)).ravel()
    kept = np.sort(np.argsort(-totals, kind="stable")[:n_terms])
    weigh = TfidfTransformer(norm="l2", sublinear_tf=sublinear)
    vectors = weigh.fit_transform(counts[:, kept].astype(np.float64)).toarray()
    if empty := int((vectors == 0).all(axis=1).sum()):
        text = "%d of %d documents have none of the %d terms: all zero, and all the same."
        log.warning(text, empty, len(vectors), len(kept))
    scaled: NDArray[np.float32] = (vectors * len(kept) ** 0.5).astype(np.float32)
    return scaled


def documents(
    name: str,
    source: str,
    root: str | None = None,
    classes: int | None = None,
    n_terms: int = 2000,
    sublinear: bool = True,
) -> Samples:
    """Load a benchmark set of documents from its prepared file, fetched first if it is missing.

    Args:
        name: What the records call the set.
        source: The prepared file without ``.npz``, a key of ``SHA256``.
        root: Folder of the prepared files, see ``prepared``.
        classes: Keep the documents of the first so many classes; ``None`` for all.
        n_terms: Terms to keep, of those documents.
        sublinear: See ``tf_idf``.

    Returns:
        Vectors, shape ``(N, n_terms)``, and labels.

    Raises:
        UserError: As ``prepared``, or there are fewer classes.
    """
    arrays, _ = prepared_arrays(source, root)
    counts, y = _csr(arrays), arrays["y"]
    if classes is not None:
        if not 2 <= classes <= y.max() + 1:
            raise problem(f"data.classes from 2 to {y.max() + 1}", classes, "correct it")
        counts, y = counts[y < classes], y[y < classes]
    x = tf_idf(counts, _checked_terms(n_terms), sublinear)
    names = CLASS_NAMES.get(source)
    return Samples(name, torch.from_numpy(x), torch.from_numpy(y), None, names and names[:classes])


def term_counts(
    path: str, name: str | None = None, n_terms: int = 2000, sublinear: bool = True
) -> Samples:
    """Load a user's own documents, counted.

    Args:
        path: An ``.npz`` file that ``scipy.sparse.save_npz`` made of a CSR matrix, one row a
            document; or one with its ``data``, ``indices``, ``indptr`` and ``shape``, and
            optionally ``y``, shape ``(N,)``, whole numbers of any value.
        name: What the records call the set; the file's name by default.
        n_terms: Terms to keep.
        sublinear: See ``tf_idf``.

    Returns:
        Vectors, shape ``(N, n_terms)``, and labels where there are some.

    Raises:
        UserError: If the file cannot be read, or is none of these.
    """
    file = Path(path).expanduser()
    remedy = "save it again with scipy.sparse.save_npz(path, counts.tocsr())"
    arrays = read_arrays(file, CSR, ("format", "y"), remedy)
    kind = str(arrays.get("format", np.array(b"csr")).astype(str))
    if kind != "csr":
        raise problem(f"a CSR matrix in {file}", kind, remedy)
    try:
        counts = _csr(arrays)
        counts.check_format(full_check=True)
    except (ValueError, TypeError, IndexError) as error:
        raise problem(f"a CSR matrix in {file}", f"the error {error}", remedy) from error
    if not counts.nnz or not np.isfinite(counts.data).all() or counts.data.min() < 0:
        got = "none" if not counts.nnz else f"values such as {counts.data.min()}"
        raise problem(f"counts of 0 or more in {file}", got, "count the terms of each document")
    x = tf_idf(counts, _checked_terms(n_terms), sublinear)
    return array(x, name or file.stem, arrays.get("y"), str(file))


def _csr(arrays: dict[str, NDArray[Any]]) -> csr_matrix:
    data, indices, indptr, shape = (arrays[key] for key in CSR)
    return csr_matrix((data.astype(np.float64), indices, indptr), shape=tuple(shape.tolist()))


def _checked_terms(n_terms: int) -> int:
    if n_terms < 1:
        raise problem("data.n_terms of 1 or more", n_terms, "set data.n_terms=2000")
    return n_terms
