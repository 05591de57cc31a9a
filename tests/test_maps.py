"""Maps of embeddings show what they say they show."""

import sys

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from torch import Tensor

from clusterlab import maps, metrics, viz
from clusterlab.errors import UserError
from conftest import draw, random, suptitle, texts, titles


def blobs(n_clusters: int, each: int = 8) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n_clusters).repeat(each)
    return 10 * random(n_clusters, 3)[labels] + random(len(labels), 3, seed=1), labels


def test_tsne_is_seeded_and_keeps_blobs_together():
    z, labels = blobs(3, 20)
    points = maps.tsne(z, seed=1)
    assert points.shape == (60, 2)
    assert torch.equal(points, maps.tsne(z, seed=1))
    assert metrics.silhouette(points, labels) > 0.5


@pytest.mark.parametrize("z", [torch.ones(7, 3), torch.rand(2, 3), torch.rand(9, 1)])
def test_tsne_of_degenerate_embeddings_is_finite(z):
    figure = maps.tsne_panels(None, z, torch.zeros(len(z), dtype=torch.int64))
    draw(figure)
    assert maps.tsne(z).isfinite().all()


def test_tsne_panels_are_two_by_two_with_labels():
    z, labels = blobs(3)
    figure = maps.tsne_panels(z, z + 1, labels, y=labels, class_names=["a$b", "_c", "d"])
    draw(figure)
    assert titles(figure) == [
        "before finetuning, by cluster",
        "before finetuning, by class",
        "after finetuning, by cluster",
        "after finetuning, by class",
    ]
    assert "24 embeddings" in suptitle(figure)
    assert all(texts(axes) == ["0", "1", "2"] for axes in figure.axes)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["0  a\\$b", "1  _c", "2  d"]


def test_tsne_panels_without_labels_or_without_before():
    z, labels = blobs(3)
    assert titles(maps.tsne_panels(z, z, labels)) == [
        "before finetuning, by cluster",
        "after finetuning, by cluster",
    ]
    assert titles(maps.tsne_panels(None, z, labels)) == ["by cluster"]
    assert titles(maps.tsne_panels(None, z, labels, y=labels)) == ["by cluster", "by class"]


def test_a_cluster_has_the_colour_of_its_class():
    z, y = blobs(4)
    labels = torch.tensor([2, 0, 3, 1])[y]
    by_cluster, by_class = maps.tsne_panels(None, z, labels, y=y).axes
    faces = [axes.collections[0].get_facecolors() for axes in (by_cluster, by_class)]
    assert np.array_equal(faces[0], faces[1])
    assert np.allclose(faces[1][3, :3], to_rgb(viz.PALETTE[3]))
    # The number of a cluster stands where its class stands.
    places = [{t.get_text(): t.get_position() for t in a.texts} for a in (by_cluster, by_class)]
    assert np.allclose(places[0]["2"], places[1]["0"], atol=1)


def test_fifty_clusters_differ_in_colour_or_marker():
    z, labels = blobs(50, 3)
    figure = maps.tsne_panels(None, z, labels)
    draw(figure)
    assert len(set(viz.PALETTE)) == 20
    assert [len(c.get_offsets()) for c in figure.axes[0].collections] == [60, 60, 30]
    paths = [c.get_paths()[0].vertices.tobytes() for c in figure.axes[0].collections]
    assert len(set(paths)) == 3
    assert len(figure.axes[0].texts) == 50


def test_numbers_are_pushed_apart():
    places = maps._spread(np.zeros((5, 2)), 1.0)
    away = np.linalg.norm(places[:, None] - places, axis=2)[~np.eye(5, dtype=bool)]
    assert away.min() > 0.8
    far = np.array([[0.0, 0.0], [5.0, 5.0]])
    assert np.allclose(maps._spread(far, 1.0), far, atol=0.02)


def test_maps_side_by_side_show_the_same_samples_a_row_for_each_colouring():
    groups = torch.arange(30) % 3
    z = torch.randn(30, 4) + 9 * groups[:, None]
    rows = {"class": [groups, groups], "cluster": [groups, (groups + 1) % 3]}
    figure = maps.side_by_side([("one", z), ("other", -z)], rows, ["a", "b", "c"])
    draw(figure)
    assert [axes.get_title() for axes in figure.axes] == ["one", "other", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == ["by class", "", "by cluster", ""]
    one, other, below, own = (axes.collections[0] for axes in figure.axes)
    assert len(one.get_offsets()) == 30
    assert np.array_equal(one.get_facecolors(), other.get_facecolors())
    assert np.array_equal(one.get_facecolors(), below.get_facecolors())
    assert np.array_equal(other.get_offsets(), own.get_offsets())
    assert np.array_equal(own.get_facecolors()[:2], other.get_facecolors()[1:3])
    assert len(np.unique(one.get_facecolors(), axis=0)) == 3
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["0  a", "1  b", "2  c"]


@pytest.mark.slow  # numba compiles umap-learn for half a minute
def test_umap_is_seeded_and_keeps_blobs_together():
    pytest.importorskip("umap")
    z, labels = blobs(3, each=20)
    points = maps.umap(z)
    assert torch.equal(points, maps.umap(z))
    assert metrics.silhouette(points, labels) > 0.5
    figure = maps.side_by_side([("one", z)], {"class": [labels]}, method="UMAP")
    assert suptitle(figure) == "UMAP of the same 60 samples"
    with pytest.raises(UserError, match="at least 4 samples to map, got 3"):
        maps.umap(z[:3])


def test_umap_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r"umap-learn .* got none installed; install it with pip"):
        maps.umap(torch.randn(9, 2))


def test_maps_of_a_moving_embedding():
    groups = torch.arange(30) % 3
    z = torch.stack([torch.randn(30, 4) + i * groups[:, None] for i in range(9)])
    figure = maps.tsne_history(z, torch.arange(0, 90, 10), groups, n_panels=4)
    draw(figure)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["step 0", "step 30", "step 50", "step 80"]
    assert all(len(axes.collections[0].get_offsets()) == 30 for axes in figure.axes)
    draw(maps.tsne_history(z[:1], torch.tensor([0]), groups))


def test_a_map_started_from_another_keeps_its_arrangement():
    torch.manual_seed(0)
    groups = torch.arange(300) % 3
    z = torch.randn(300, 4) + 4 * torch.nn.functional.one_hot(groups, 4)
    first = maps.tsne(z)
    turned = maps.tsne(z, start=first.flip(1))  # x and y exchanged
    for k in range(3):
        one, other = first[groups == k].mean(0), turned[groups == k].mean(0).flip(0)
        assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.9
