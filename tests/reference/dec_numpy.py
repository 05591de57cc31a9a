"""The equations of DCEC and IDCEC once more, as loops over i and j, straight from the papers.

Independent of ``clusterlab``: numpy scalars, no broadcasting, no autograd.
"""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def squared_distance(a: Matrix, b: Matrix) -> float:
    return sum((float(s) - float(t)) ** 2 for s, t in zip(a, b, strict=True))


def soft_assignment(z: Matrix, centers: Matrix) -> Matrix:
    """DCEC eq. (6)."""
    n, k = len(z), len(centers)
    q = np.zeros((n, k))
    for i in range(n):
        total = sum(1 / (1 + squared_distance(z[i], centers[j])) for j in range(k))
        for j in range(k):
            q[i, j] = 1 / (1 + squared_distance(z[i], centers[j])) / total
    return q


def target_distribution(q: Matrix) -> Matrix:
    """DCEC eq. (8)."""
    n, k = q.shape
    f = [sum(float(q[i, j]) for i in range(n)) for j in range(k)]
    p = np.zeros((n, k))
    for i in range(n):
        total = sum(float(q[i, j]) ** 2 / f[j] for j in range(k))
        for j in range(k):
            p[i, j] = float(q[i, j]) ** 2 / f[j] / total
    return p


def kl_divergence(p: Matrix, q: Matrix) -> float:
    """DCEC eq. (7): a sum over i and j, as printed; 0 log 0 = 0."""
    total = 0.0
    for i in range(len(p)):
        for j in range(p.shape[1]):
            if p[i, j] > 0:
                total += float(p[i, j]) * float(np.log(float(p[i, j]) / float(q[i, j])))
    return total


def gradient_z(z: Matrix, centers: Matrix, p: Matrix) -> Matrix:
    """IDCEC eq. (9): derivative of eq. (7) by the embeddings."""
    q = soft_assignment(z, centers)
    gradient = np.zeros(z.shape)
    for i in range(len(z)):
        for j in range(len(centers)):
            kernel = 1 / (1 + squared_distance(z[i], centers[j]))
            gradient[i] += 2 * kernel * (p[i, j] - q[i, j]) * (z[i] - centers[j])
    return gradient


def gradient_centers(z: Matrix, centers: Matrix, p: Matrix) -> Matrix:
    """IDCEC eq. (10): derivative of eq. (7) by the centers."""
    q = soft_assignment(z, centers)
    gradient = np.zeros(centers.shape)
    for j in range(len(centers)):
        for i in range(len(z)):
            kernel = 1 / (1 + squared_distance(z[i], centers[j]))
            gradient[j] += 2 * kernel * (q[i, j] - p[i, j]) * (z[i] - centers[j])
    return gradient
