"""What a report shows: runs of one mean in a line, next to the published number."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from clusterlab.errors import problem
from clusterlab.metrics import SCORES
from clusterlab.results import ALIKE, CONFIG, Row

# What must agree among the runs of one mean; of the last two a reader may say that they need not.
POOLABLE = ("commit", "device")
SAME = (*ALIKE, *POOLABLE)
SHORT = {"accuracy": "ACC", "nmi": "NMI", "ari": "ARI", "f1": "F1"}
START = "phases.retrain.metrics_at_start."
STOPPED = "phases.retrain.stop_reason"
ASKED = "asked."  # before the name of what a command line asks beside its experiment
CLASS = "._target_"  # at the end of the name of what a part of the config builds
FLOAT32 = "32-true"  # the trainer's word for it
Score = tuple[float, float | None]  # mean and sample standard deviation, in percent


@dataclass(frozen=True)
class Line:
    """One line of a table: the runs of one method that differ in their seed alone.

    Args:
        data: Name of the data set.
        method: Name of the method, as in ``model=``.
        rows: Records of the runs; none if nobody ran it.
        published: Row of the published number, or ``None``.
        different: In what these runs differ from other lines of the method: the values of
            settings and of what else stands in ``SAME``, by name; and their precision, if it is not
            float32.
    """

    data: str
    method: str
    rows: tuple[Row, ...]
    published: Row | None
    different: Mapping[str, str]

    def ours(self, name: str) -> Score | None:
        """Return mean and deviation of a score over seeds; ``None`` without labels or runs.

        In percent for the four scores, of whatever samples or phase; any other number of the
        records is left as it is, and a word, such as why a phase stopped, has no mean.
        """
        try:
            values = [scale(name) * float(row[name]) for row in self.rows if row.get(name)]
        except ValueError:
            return None
        return (mean(values), stdev(values) if len(values) > 1 else None) if values else None

    def words(self, name: str) -> str:
        """Return what a column says that is no number; how often, where runs say different."""
        counts = Counter(short(name, row[name]) for row in self.rows if row.get(name))
        if len(counts) == 1:
            return next(iter(counts))
        return "; ".join(f"{count} {word}" for word, count in counts.most_common())

    def theirs(self, name: str) -> float | None:
        """Return the published score in percent."""
        value = (self.published or {}).get(name)
        return 100 * float(value) if value else None

    def name(self, without: Sequence[str] = ()) -> str:
        """Return what tells the line from others, but for some of it."""
        told = [f"{name}={value}" for name, value in self.different.items() if name not in without]
        return ", ".join([f"{self.method} on {self.data}", *told])

    @property
    def minutes(self) -> float | None:
        """Mean minutes of a run, those of a reused pretraining included."""
        return mean(float(row["seconds"]) / 60 for row in self.rows) if self.rows else None


def of_table(
    rows: Sequence[Row], published: Sequence[Row], name: str
) -> tuple[list[Row], list[Row]]:
    """Choose what belongs to one of the published tables.

    Our own experiments stand with their method, another paper's in that paper's table.

    Args:
        rows: Records, one a run.
        published: Published numbers of all tables.
        name: The table.

    Returns:
        Of each the rows that belong to it.

    Raises:
        UserError: If there is no such table.
    """
    own = [row for row in published if row["table"] == name]
    if not own:
        names = ", ".join(dict.fromkeys(row["table"] for row in published))
        raise problem(f"a table of {names}", name, "choose one")
    cells = {(row["data"], row["model"]) for row in own}
    others = {row["experiment"] for row in published} - {row["experiment"] for row in own}
    chosen = [
        row
        for row in rows
        if (row["data"], row["model"]) in cells and row["experiment"] not in others
    ]
    return chosen, own


def settled(row: Row) -> bool | None:
    """Tell whether the classifier of a run's module B settled; ``None`` if it has none.

    Example:
        >>> [settled({STOPPED: why}) for why in ("tolerance", "max_epochs", "")]
        [True, False, None]
    """
    return row[STOPPED] == "tolerance" if row.get(STOPPED) else None


def asked(rows: Sequence[Row]) -> dict[str, str]:
    """Return what each of some runs was asked to do differently from its experiment.

    A published number is of the experiment's own settings, so that a line beside one says it.

    Example:
        >>> asked([{"asked.network": "cae", "asked.n_clusters": "10"}, {"asked.network": "cae"}])
        {'network': 'cae'}
    """
    told = {name for row in rows for name in row if name.startswith(ASKED)}
    values = {name: {row.get(name) for row in rows} for name in sorted(told)}
    return {n.removeprefix(ASKED): v for n, (v, *more) in values.items() if v and not more}


def precision(row: Row) -> str:
    """Return the precision that a run was trained in; the oldest records, all float32, name none.

    Example:
        >>> precision({"config.precision": "bf16-mixed"}), precision({})
        ('bf16-mixed', '32-true')
    """
    return row.get(f"{CONFIG}precision") or FLOAT32


def scale(name: str) -> int:
    """Return by what a number of the records is multiplied to be shown: a score is in percent.

    Example:
        >>> [scale(n) for n in ("nmi", "phases.retrain.accuracy_rejected", "phases.retrain.steps")]
        [100, 100, 1]
    """
    return 100 if name.rpartition(".")[2].partition("_")[0] in SCORES else 1


def lines(
    rows: Sequence[Row],
    published: Sequence[Row] = (),
    missing: bool = False,
    pooled: Sequence[str] = (),
) -> list[Line]:
    """Put runs that differ in their seed alone into one line each, beside the published number.

    Lines are in the order of the published table, then by name, and by value where a setting was
    swept. Runs of a method that differ in settings, data, revision or device are lines of their
    own, which say in what.

    Args:
        rows: Records, one a run.
        published: Published numbers, see ``results/published.csv``; where several have the method
            and the data, the first for the same experiment counts, else the first.
        missing: Also give published lines that nobody ran.
        pooled: Of ``POOLABLE``, in what the runs of a line may differ too.

    Raises:
        UserError: If a seed is twice in a line.
    """
    methods: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        methods.setdefault((row["data"], row["model"]), []).append(row)
    order = dict.fromkeys((row["data"], row["model"]) for row in published)
    wanted = [key for key in order if missing or key in methods]
    table: list[Line] = []
    for data, method in [*wanted, *sorted(methods.keys() - order.keys())]:
        own = [row for row in published if (row["data"], row["model"]) == (data, method)]
        found = _lines_of(data, method, methods.get((data, method), []), own, pooled)
        table += found
        if missing:
            table += _not_run(data, method, found, own)
    return table


def _lines_of(
    data: str, method: str, rows: Sequence[Row], published: Sequence[Row], pooled: Sequence[str]
) -> list[Line]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    same = [name for name in SAME if name not in pooled]
    for row in rows:
        groups.setdefault(tuple(row.get(name, "") for name in same), []).append(row)
    told = differences([group[0] for group in groups.values()])
    found = []
    for group, different in zip(groups.values(), told, strict=True):
        seeds = sorted(int(row["seed"]) for row in group)
        if len(set(seeds)) < len(seeds):
            remedy = f"drop one{', or pool less' if pooled else ''}"
            raise problem("one run per seed", f"seeds {', '.join(map(str, seeds))}", remedy)
        theirs = published_for(group[0], published)
        name = ((theirs or {}).get("setting") or "").partition("=")[0]
        if name and name not in different:  # told also where nothing else differs
            different = {name: short(name, group[0][CONFIG + name]), **different}
        bits = precision(group[0])
        if bits != FLOAT32 and "precision" not in different:
            different["trainer.precision"] = bits
        if theirs:
            different = different | asked(group) | different
        found.append(Line(data, method, tuple(group), theirs, different))
    return sorted(found, key=lambda line: [number(v) for v in line.different.values()])


def _not_run(data: str, method: str, found: Sequence[Line], published: Sequence[Row]) -> list[Line]:
    """Return a line for each setting and experiment with a published number and no run."""
    there = {_which(line.published) for line in found if line.published}
    left: dict[tuple[str, str], Line] = {}
    for row in published:
        name, _, value = (row.get("setting") or "").partition("=")
        if _which(row) not in there:
            line = Line(data, method, (), row, {name: value} if name else {})
            left.setdefault(_which(row), line)
    return list(left.values())


def published_for(row: Row, published: Sequence[Row]) -> Row | None:
    """Choose the published number to put beside a record.

    Args:
        row: The record.
        published: Published numbers of its method and data.

    Returns:
        The first that has no setting or the record's, of the same experiment if there is one.

    Example:
        >>> tenth = {"setting": "data.labelled=0.1", "experiment": "some", "accuracy": "0.9"}
        >>> published_for({"config.data.labelled": "0.10", "experiment": ""}, [tenth])["accuracy"]
        '0.9'
        >>> published_for({"config.data.labelled": "0.2", "experiment": ""}, [tenth])
    """
    fitting = []
    for line in published:
        name, _, value = (line.get("setting") or "").partition("=")
        ours = row.get(CONFIG + name, "")
        if not name or ours == value or number(ours) == number(value) < math.inf:
            fitting.append(line)
    same = [line for line in fitting if line["experiment"] == row.get("experiment")]
    return next(iter(same or fitting), None)


def _which(published: Row) -> tuple[str, str]:
    return published.get("setting") or "", published["experiment"]


def number(text: str) -> float:
    """Return a number as it is and anything else as infinite, so that it comes last."""
    try:
        return float(text)
    except ValueError:
        return math.inf


def differences(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Say in what each of some runs differs from the others.

    Experiments have names, which stand for all that varies with them. Otherwise a value that
    others are derived from is named alone: of settings that vary together, the one with the
    shortest name, and a part of the config that some have and others have not, by its own name. One
    that came with a revision, of which older records know nothing, says less than the revision.

    Example:
        >>> a = {"config.loss.gamma": "0.1", "config.model.gamma": "0.1", "config.seed": "0"}
        >>> differences([a, a | {"config.loss.gamma": "1", "config.model.gamma": "1"}])
        [{'loss.gamma': '0.1'}, {'loss.gamma': '1'}]
        >>> affine = {"config.augment._target_": "x.Affine", "config.augment.flip": "0"}
        >>> differences([a, a | affine])
        [{'augment': 'none'}, {'augment': 'Affine'}]
    """
    settings = {name for row in rows for name in row if name.startswith(CONFIG)}
    experiments = [row.get("experiment", "") for row in rows]
    if len(rows) > 1 and len(set(experiments)) == len(rows):
        return [{"experiment": name or "none"} for name in experiments]
    found: dict[tuple[int, ...], str] = {}
    if all(experiments) and len(set(experiments)) > 1:
        found[tuple(experiments.index(name) for name in experiments)] = "experiment"
    parts = {n for n in settings if n.endswith(CLASS) and not all(row.get(n) for row in rows)}
    for name in sorted(settings, key=lambda name: (name not in parts, len(name), name)):
        values = [row.get(name, "") for row in rows]
        pattern = tuple(values.index(value) for value in values)
        if any(pattern):
            found.setdefault(pattern, name)

    def told(names: Sequence[str]) -> int:
        return len({tuple(row.get(name, "") for name in names) for row in rows})

    names = sorted(found.values())
    others = [name for name in names if name != "experiment"]
    if told(others) == told(names):
        names = others
    lasting = [name for name in names if not _came_later(rows, name)]
    names = lasting or names
    for name in SAME[::-1]:  # where those leave rows that differ in it without a difference
        if told([*names, name]) > told(names):
            names.append(name)
    shown = {name: name.removeprefix(CONFIG).removesuffix(CLASS) for name in names}
    return [{shown[name]: short(name, row.get(name, "")) for name in names} for row in rows]


def _came_later(rows: Sequence[Row], name: str) -> bool:
    """Tell whether a column has one value in all records of some revisions, and none in others."""
    there = [row for row in rows if row.get(name)]
    since = {row.get("commit") for row in there}
    before = {row.get("commit") for row in rows if not row.get(name)}
    return bool(before) and since.isdisjoint(before) and len({row[name] for row in there}) == 1


def short(name: str, value: str) -> str:
    """Shorten a digest, a revision or a class, and put a word for what is not there.

    Example:
        >>> short("config.network._target_", "clusterlab.networks.ConvAutoencoder")
        'ConvAutoencoder'
        >>> short("commit", "0123456789abcdef-dirty")
        '012345678-dirty'
        >>> short("config.model.seed", "")  # that of the run
        'seed'
    """
    if name == f"{CONFIG}model.seed":
        return value or "seed"
    if name.endswith(CLASS):
        return value.rpartition(".")[2] or "none"
    if not name.endswith(("sha256", "commit")):
        return value or "none"
    digest, dirty, _ = value.partition("-dirty")
    return digest[:9] + dirty or "none"
