"""The page of a run: what it holds, and how it behaves in a real browser."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bokeh.resources import Resources
from omegaconf import DictConfig
from sklearn.metrics import adjusted_rand_score

from clusterlab import gallery, page
from clusterlab.centers import agreement
from clusterlab.data.samples import Samples
from clusterlab.neighbours import neighbours, valley
from clusterlab.training import run
from conftest import composed

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FEW = ("phases.pretrain.max_epochs=3", "phases.finetune.max_steps=20", "trainer=cpu")
SMALL = (
    "network.filters=[4,8,16]",
    "data=folder",
    "n_clusters=4",
    "phases.finetune.optimizer.lr=0.0001",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 coloured images in folders with odd names, and one broken file."""
    from PIL import Image

    root = tmp_path_factory.mktemp("in") / "my <pictures>"
    rng = np.random.default_rng(0)
    for i in range(120):
        x = rng.integers(0, 60, (12, 10, 3)).astype(np.uint8)
        x[:, :, i % 3] += np.uint8(150)
        name = ("a", 'b "c"', "d&e")[i % 3] + f"/<b>{i}%</b> '#.png".replace("/b", "b")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(root / name)
    (root / "a" / "no.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DictConfig, Path]:
    """A finished run on the folder, and its page."""
    asked = ("data=folder", *SMALL, *FEW, f"data.path='{folder}'", "data.skip_broken=true")
    cfg = composed(tmp_path_factory.mktemp("runs"), *asked)
    run(cfg)
    return cfg, Path(cfg.run_dir) / "report.html"


def copied(run_dir: Path, to: Path, **changes: Any) -> Path:
    """Copy a run, and change what its record says."""
    shutil.copytree(run_dir, to)
    record = json.loads((to / "result.json").read_text())
    (to / "result.json").write_text(json.dumps(record | changes))
    return to


def without_library(text: str) -> str:
    """Leave out the plotting library, whose text has addresses and tags of its own."""
    library = Resources(mode="inline", components=["bokeh"]).render_js()
    assert library in text
    return text.replace(library, "")


def test_the_page_is_one_file_without_outside_addresses(made: tuple[DictConfig, Path]) -> None:
    text = made[1].read_text()
    own = without_library(text)
    assert not re.findall(r"(?:src|href|action)=[\"']?(?:https?:)?//", own)
    assert not re.findall(r"url\((?!data:)", own)
    assert "@import" not in own
    assert len(text) < 6_000_000


def test_odd_names_are_text_and_not_markup(made: tuple[DictConfig, Path]) -> None:
    text = without_library(made[1].read_text())
    assert "<b>" not in text
    assert "&lt;b&gt;" in text


def test_the_page_tells_what_was_passed_over(made: tuple[DictConfig, Path]) -> None:
    assert "1 files could not be read" in made[1].read_text()


def test_ten_thousand_noisy_images_stay_under_six_megabytes(
    made: tuple[DictConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise in colour compresses worst; arranging it is another test's matter."""
    n = 10_000
    run_dir = copied(made[1].parent, tmp_path / "run", n_samples=n, n_clusters=10)
    rng = np.random.default_rng(0)
    q = rng.dirichlet(np.ones(10), n).astype(np.float32)
    z = rng.normal(size=(n, 10)).astype(np.float32)
    np.savez(run_dir / "assignments.npz", q=q, z=z)
    (run_dir / "before.npz").unlink()
    x = torch.randint(0, 256, (n, 3, 96, 96), dtype=torch.uint8)
    names = tuple(f"a folder/with a long name/{i:010d}.jpeg" for i in range(n))
    monkeypatch.setattr(page, "arranged", lambda *_: (np.arange(100), z[:100, :2]))
    path = page.write(run_dir, Samples("noise", x, files=names, sha256="0"))
    assert 3_000_000 < path.stat().st_size < 6_000_000


def test_lists_name_the_right_samples() -> None:
    # Two clusters on a line: the means are at 1 and 11.
    z = np.array([[0.0], [1.1], [1.9], [10.0], [11.1], [11.9]], np.float32)
    q = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.1, 0.9], [0.45, 0.55]])
    y = torch.tensor([1, 1, 0, 0, 0, 0])
    x = torch.tensor([[0.0, 3.0]] * 3 + [[4.0, 3.0]] * 3)
    samples = Samples("six", x, y, class_names=("cat", "dog"))
    first, second = gallery.clusters_of(
        samples, z, q.astype(np.float32), [str(i) for i in range(6)]
    )
    chosen = {title: [one.index for one in shown] for title, shown in first.lists.items()}
    assert chosen == {
        "Most typical": [1, 2, 0],
        "Least certain": [2, 1, 0],
        "Outermost": [0, 2, 1],
    }
    assert [one.index for one in second.lists["Least certain"]] == [5, 3, 4]
    assert first.confidence == pytest.approx(0.7667, abs=1e-4)
    assert first.classes == [("dog", pytest.approx(2 / 3)), ("cat", pytest.approx(1 / 3))]
    assert second.classes == [("cat", 1.0)]
    assert second.features == [(0, 1.0)]  # 2 above the mean of 2, of deviation 2; the other is flat


def test_empty_clusters_and_vectors_have_a_page(
    made: tuple[DictConfig, Path], tmp_path: Path
) -> None:
    run_dir = copied(made[1].parent, tmp_path / "run")
    q = np.zeros((120, 4), np.float32)
    q[:, 1] = 1
    np.savez(run_dir / "assignments.npz", q=q, z=np.zeros((120, 3), np.float32))
    (run_dir / "metrics.csv").unlink()
    (run_dir / "map.npz").unlink()
    path = page.write(run_dir, Samples("vectors", torch.zeros(120, 7)))
    text = path.read_text()
    assert "120 vectors of 7" in text
    assert "<img" not in text


def test_some_samples_stand_for_all_under_their_own_numbers(
    made: tuple[DictConfig, Path], tmp_path: Path
) -> None:
    """Every second sample was kept from before finetuning, every third is on the map."""
    run_dir = copied(made[1].parent, tmp_path / "run")
    labels = np.repeat([0, 1, 2, 3], 30)
    q = np.full((120, 4), 0.1, np.float32)
    q[np.arange(120), labels] = 0.7
    z = np.eye(4, dtype=np.float32)[labels] * 50 + normal(0, 0, 120)[:, :1]
    np.savez(run_dir / "assignments.npz", q=q, z=z)
    before = np.random.default_rng(0).normal(0, 0.1, (60, 2))
    before[:, 0] += np.array([0, 0.1, 30, 60])[labels[::2]]  # clusters 0 and 1 lie together
    np.savez(run_dir / "before.npz", index=np.arange(0, 120, 2), z=before)
    np.savez(run_dir / "map.npz", index=np.arange(0, 120, 3), places=z[::3, :2])
    y = torch.from_numpy(np.where(labels == 3, 2, labels))  # of three classes one was cut in two
    names = tuple(f"file {i}" for i in range(120))
    samples = Samples("known", torch.zeros(120, 3), y, names, ("cat", "</script>", "eel"))
    text = page.write(run_dir, samples).read_text()
    cards = text[text.index('<section id="neighbours">') : text.index('<section id="curves">')]
    assert re.findall(r"Clusters (\d) and (\d)", cards) == [("0", "1")]
    shown = [int(i) for i in re.findall(r'title="file (\d+)"', cards)]
    assert len(shown) == 8
    assert all(i % 2 == 0 and i < 60 for i in shown)
    table = text[text.index('<section id="confusion">') : text.index('<section id="run">')]
    cells = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', table)
    counts = {name: re.findall(r">([\d,]*)</td>", row) for name, row in cells}
    assert counts == {
        "cat": ["30", "", "", ""],
        "&lt;/script&gt;": ["", "30", "", ""],
        "eel": ["", "", "30", "30"],
    }


def test_two_hundred_clusters_stay_under_six_megabytes(
    made: tuple[DictConfig, Path], tmp_path: Path
) -> None:
    n = 2_000
    run_dir = copied(made[1].parent, tmp_path / "run", n_samples=n, n_clusters=200)
    rng = np.random.default_rng(0)
    q, z = np.eye(200, dtype=np.float32)[np.arange(n) % 200], rng.normal(size=(n, 5))
    np.savez(run_dir / "assignments.npz", q=q, z=z.astype(np.float32))
    np.savez(run_dir / "map.npz", index=np.arange(n), places=z[:, :2])
    (run_dir / "before.npz").unlink()
    x = torch.randint(0, 256, (n, 3, 64, 64), dtype=torch.uint8)
    path = page.write(run_dir, Samples("noise", x, sha256="0"))
    assert path.stat().st_size < 6_000_000
    assert path.read_text().count("<img") >= 600


def test_the_map_is_that_of_the_figures(made: tuple[DictConfig, Path]) -> None:
    run_dir = made[1].parent
    with np.load(run_dir / "assignments.npz") as stored:
        z = stored["z"]
    index, places = page.arranged(run_dir, z, seed=0)
    (run_dir / "map.npz").rename(run_dir / "kept")
    again = page.arranged(run_dir, z, seed=0)
    (run_dir / "kept").rename(run_dir / "map.npz")
    assert np.array_equal(index, again[0])
    assert np.allclose(places, again[1])


# --- neighbours


def normal(seed: int, mean: float, n: int = 400) -> Any:
    return np.random.default_rng(seed).normal([mean, 0, 0], 1, (n, 3))


def test_a_valley_is_as_deep_as_the_mixture_of_two_normals() -> None:
    # Means 4 apart: density 2 e^-2 / (1 + e^-8) of that at a mean, 0.27; smoothing fills it a bit.
    assert valley(normal(0, 0, 4000), normal(1, 4, 4000)) == pytest.approx(0.27, abs=0.06)
    assert valley(normal(0, 0), normal(1, 10)) < 0.01
    assert valley(np.zeros((5, 2)), np.zeros((5, 2))) == 1


def test_a_cluster_cut_in_two_is_found() -> None:
    z = np.concatenate([normal(0, 0), normal(1, 12), normal(2, 24)])
    labels = np.repeat([0, 2, 3], 400)
    labels[:400] = z[:400, 1] > 0  # the first one is cut: clusters 0 and 1
    (pair,) = neighbours(z, labels, 5)
    assert (pair.a, pair.b) == (0, 1)
    assert pair.valley > 0.8
    border = np.abs(z[pair.between, 1])
    assert border.max() < 0.1
    assert (labels[pair.between] == [0, 0, 0, 0, 1, 1, 1, 1]).all()


def test_a_small_cluster_beside_a_large_one_is_separate() -> None:
    for seed in range(5):
        assert valley(normal(seed, 0, 1000), normal(seed + 9, 5, 10)) < 0.3


def test_all_parts_of_a_cluster_are_looked_at() -> None:
    """Samples are sorted by their folders: the first ones may be of one part alone."""
    near, far = normal(0, 0, 1000), normal(1, 30, 1000)
    other = normal(2, 27, 1000)  # beside the second part, without a gap
    z = np.concatenate([near, far, other])
    labels = np.repeat([0, 0, 1], 1000)
    (pair,) = neighbours(z, labels, 2, n_most=100)
    assert pair.valley > 0.5
    assert all(i >= 1000 for i in pair.between)


# --- scripts/page.py


def test_data_that_changed_is_refused_and_others_go_on(
    made: tuple[DictConfig, Path],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    for name, changes in (("a#b", {}), ("c", {"data_sha256": "another"})):
        run_dir = copied(made[1].parent, tmp_path / "x" / name, **changes)
        (run_dir / "report.html").unlink()
    monkeypatch.setattr(sys, "argv", ["page.py", str(tmp_path / "x")])
    page.main()
    assert "c was made with, got other data; put it back" in capsys.readouterr().err
    text = (tmp_path / "x" / "index.html").read_text()
    assert re.findall(r'href="(.*?html)"', text) == ["./a%23b/report.html"]
    monkeypatch.setattr(sys, "argv", ["page.py", str(run_dir)])
    with pytest.raises(SystemExit):
        page.main()


def test_a_run_whose_clusters_are_gone_is_named_and_made_again(
    made: tuple[DictConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    cfg, path = made
    gone = copied(path.parent, tmp_path / "x" / "gone")
    copied(path.parent, tmp_path / "x" / "kept")
    labels = np.load(gone / "assignments.npz")["label"]
    (gone / "assignments.npz").unlink()
    monkeypatch.setattr(sys, "argv", ["page.py", str(tmp_path / "x")])
    page.main()
    assert f"got no assignments.npz in {gone}; run its command, with" in capsys.readouterr().err
    assert "gone" in (tmp_path / "x" / "index.html").read_text()
    (gone / "result.json").unlink()
    steps = (gone / "finetune" / "phase.json").read_bytes()
    again = cfg.copy()
    again.run_dir = str(gone)
    run(again)
    assert (np.load(gone / "assignments.npz")["label"] == labels).all()
    assert (gone / "finetune" / "phase.json").read_bytes() == steps  # it trained nothing


def test_a_folder_of_runs_has_an_index(
    made: tuple[DictConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("seed=0", "seed=1"):
        shutil.copytree(made[1].parent, tmp_path / "x" / name)
        (tmp_path / "x" / name / "report.html").unlink()
    (tmp_path / "x" / "failed").mkdir()
    (tmp_path / "x" / "failed" / "result.json").write_text('{"error": "no"}')
    monkeypatch.setattr(sys, "argv", ["page.py", str(tmp_path / "x")])
    page.main()
    text = (tmp_path / "x" / "index.html").read_text()
    assert re.findall(r'href="(.*?html)"', text) == [
        "./seed%3D0/report.html",
        "./seed%3D1/report.html",
    ]
    assert (tmp_path / "x" / "seed=1" / "report.html").stat().st_size > 1_000_000


def test_the_index_tells_how_far_seeds_agree(made: tuple[DictConfig, Path], tmp_path: Path) -> None:
    runs = [copied(made[1].parent, tmp_path / str(seed), seed=seed) for seed in (0, 1, 2)]
    labels = np.arange(120) // 30
    np.savez(runs[2] / "assignments.npz", label=np.where(labels == 3, 2, labels))
    text = page.write_index(tmp_path, runs).read_text()
    with np.load(runs[0] / "assignments.npz") as stored:
        other = adjusted_rand_score(stored["label"], np.where(labels == 3, 2, labels))
    cells = [re.findall("<td>(.*?)</td>", row) for row in text.split("<tr>")[2:]]
    assert [f"{(1 + other) / 2:.3f}" in row for row in cells] == [True, True, other == 1]
    assert f"{other:.3f}" in cells[2]


def test_no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["page.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        page.main()
    assert "Expected a finished run in" in capsys.readouterr().err


def test_a_finished_run_without_its_page_gets_it(made: tuple[DictConfig, Path]) -> None:
    cfg, path = made
    path.unlink()
    run(cfg)
    assert path.exists()


def test_names_that_are_no_text_reach_the_end(tmp_path: Path) -> None:
    from PIL import Image

    root = tmp_path / "in"
    root.mkdir()
    for i in range(20):
        x = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(x).save(root / f"{i}.png")
    try:
        (root / "7.png").rename(os.fsdecode(os.fsencode(root) + b"/caf\xe9.png"))
    except OSError:
        pytest.skip("a file system of text names alone")
    asked = ("data=folder", f"data.path={root}", "n_clusters=2", "model=kmeans")
    cfg = composed(tmp_path, *asked)
    run(cfg)
    table = (Path(cfg.run_dir) / "assignments.csv").read_bytes()
    assert b",caf\xe9.png," in table
    assert "caf" in (Path(cfg.run_dir) / "report.html").read_text()


def test_the_record_says_how_far_two_halves_agree(made: tuple[DictConfig, Path]) -> None:
    record = json.loads((made[1].parent / "result.json").read_text())["label_free"]
    with np.load(made[1].parent / "before.npz") as stored:
        found = agreement(torch.from_numpy(stored["z"]), 4, seed=0)
    assert record["agreement"] == pytest.approx(sum(found) / len(found))
    told = [line.split(":")[0] for line in record["trouble"]]
    assert ("Unstable" in told) == (record["agreement"] < 0.6)


# --- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any, made: tuple[DictConfig, Path]) -> Iterator[Callable[..., Any]]:
    """Open the page; at the end there must have been no errors, and no request."""
    wrong: list[str] = []
    pages = []

    def open_page(path: Path = made[1], **options: Any) -> Any:
        tab = browser.new_page(**options)
        pages.append(tab)
        tab.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else 0)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        own = ("file:", "data:")
        tab.on("request", lambda r: 0 if r.url.startswith(own) else wrong.append(r.url))
        tab.goto(path.as_uri())
        if path.name == "report.html":
            tab.wait_for_function("Bokeh.documents[0]?.get_model_by_name('map')")
            tab.wait_for_timeout(1000)
        return tab

    yield open_page
    for tab in pages:
        tab.close()
    assert wrong == []


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_are_there_and_nothing_is_wider_than_the_screen(
    opened: Callable[..., Any], width: int, scheme: str
) -> None:
    tab = opened(viewport={"width": width, "height": 800}, color_scheme=scheme)
    for image in tab.locator("img").all():
        image.scroll_into_view_if_needed()
        assert image.evaluate("i => i.decode().then(() => i.naturalWidth)") == 10
    assert tab.locator("img").count() >= 4 * 3 * 3
    assert tab.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 21, 23)"
    assert dark == (scheme == "dark")


def test_pointing_at_a_sample_shows_its_picture_and_its_file(
    opened: Callable[..., Any], folder: Path
) -> None:
    tab = opened(viewport={"width": 1280, "height": 900})
    tab.locator("#map [role=img]").scroll_into_view_if_needed()
    box = tab.locator("#map [role=img]").bounding_box()
    tip = tab.locator("#pointed")
    for step in range(400):  # there is a point somewhere
        x = box["x"] + box["width"] * (0.2 + 0.6 * (step % 20) / 20)
        y = box["y"] + 60 + (box["height"] - 90) * (step // 20) / 20
        tab.mouse.move(x, y)
        tab.wait_for_timeout(20)
        if tip.is_visible():
            break
    name = tip.inner_text().splitlines()[0]
    assert (folder / name).exists()
    mean = """c => { const rgba = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
      return [0, 1, 2].map(i => rgba.filter((_, j) => j % 4 === i).reduce((a, b) => a + b)); }"""
    sums = tip.locator("canvas").evaluate(mean)
    number = int(re.findall(r"(\d+)%", name)[0])
    assert sums.index(max(sums)) == number % 3  # its own picture, not another's
    tab.mouse.click(x, y)
    tab.wait_for_timeout(300)
    assert name in tab.locator("#found").inner_text()


def test_a_sample_is_found_by_keyboard(opened: Callable[..., Any]) -> None:
    tab = opened(viewport={"width": 1280, "height": 900})
    for _ in range(20):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.id") == "search":
            break
    tab.keyboard.type("<b>7")
    found = tab.locator("#found")
    assert "<b>7" in found.inner_text()
    total = int(found.inner_text().rsplit(" of ", 1)[1])
    assert total == 11  # 7, 70, ... 79
    tab.keyboard.press("Enter")
    assert f"2 of {total}" in found.inner_text()
    assert tab.evaluate("Bokeh.documents[0].get_model_by_name('map').selected.indices.length") == 1


def test_clusters_can_be_hidden(opened: Callable[..., Any]) -> None:
    tab = opened(viewport={"width": 1280, "height": 900})
    tab.locator("[data-cluster='1']").uncheck()
    columns = (
        "(c => [[...c.cluster], [...c.alpha]])(Bokeh.documents[0].get_model_by_name('map').data)"
    )
    clusters, alphas = tab.evaluate(columns)
    assert {alpha for k, alpha in zip(clusters, alphas, strict=True) if k == 1} <= {0}
    assert 0 not in {alpha for k, alpha in zip(clusters, alphas, strict=True) if k != 1}
    tab.locator("#none").click()
    assert set(tab.evaluate(columns)[1]) == {0}


def test_the_index_sorts(
    opened: Callable[..., Any], made: tuple[DictConfig, Path], tmp_path: Path
) -> None:
    runs = []
    for seed in (2, 10, 1):
        runs.append(copied(made[1].parent, tmp_path / f"r{seed}", seed=seed))
    tab = opened(page.write_index(tmp_path, runs))
    tab.get_by_role("button", name="seed", exact=True).click()
    seeds = [row.locator("td").nth(3).inner_text() for row in tab.locator("tbody tr").all()]
    assert seeds == ["1", "2", "10"]
