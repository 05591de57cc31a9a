"""What measures of a scan over K say, and how sure that is."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """What one measure says.

    Args:
        best: K of the best mean over seeds; ``None`` if one Gaussian does as well.
        near: Those whose mean is within one standard deviation of it.
        end: "or more" or "or fewer" if the best is where the scan ends.
    """

    best: int | None
    near: tuple[int, ...] = ()
    end: str = ""

    @property
    def firm(self) -> bool:
        """Whether it names a number, and no bound of one."""
        return self.best is not None and not self.end

    def __str__(self) -> str:
        """Return the number or its bound."""
        return "none" if self.best is None else f"{self.best} {self.end}".strip()


def table(rows: Sequence[Mapping[str, float]]) -> tuple[list[int], dict[str, Values]]:
    """Return the K of a scan's rows, and by name each column, shape ``(seeds, len(ks))``.

    Example:
        >>> table([{"k": 2, "seed": 0, "bic": -1.5}, {"k": 3, "seed": 0, "bic": -2.0}])
        ([2, 3], {'bic': array([[-1.5, -2. ]])})
    """
    ordered = sorted(rows, key=lambda row: (row["seed"], row["k"]))
    ks = sorted({int(row["k"]) for row in rows})
    names = [name for name in rows[0] if name not in ("k", "seed")]
    return ks, {
        name: np.array([row[name] for row in ordered], dtype=float).reshape(-1, len(ks))
        for name in names
    }


def choose(ks: Sequence[int], values: Values, against_one: bool) -> Choice:
    """Choose the K of the highest mean, the largest if several are exactly equal.

    Args:
        ks: The numbers of clusters, ascending.
        values: Shape ``(seeds, len(ks))``; higher is better.
        against_one: Whether 0 is what one Gaussian has. The best must then be two standard
            deviations above: it is the best of many.

    Example:
        >>> choose([2, 3, 4], np.array([[0.1, 0.5, 0.4], [0.1, 0.7, 0.6]]), against_one=True)
        Choice(best=3, near=(3, 4), end='')
    """
    mean, std = values.mean(0), values.std(0, ddof=1)
    i = len(ks) - 1 - int(mean[::-1].argmax())
    if against_one and mean[i] <= 2 * std[i]:
        return Choice(None)
    near = tuple(k for k, value in zip(ks, mean, strict=True) if value >= mean[i] - std[i])
    # Fewer than two clusters there cannot be: the lower end bounds nothing if it is 2.
    low = i == 0 and ks[0] > 2
    return Choice(ks[i], near, "or fewer" if low else "or more" if i == len(ks) - 1 else "")


def choices(rows: Sequence[Mapping[str, float]]) -> dict[str, Choice]:
    r"""Let each measure choose: the highest silhouette, the lowest BIC, the most agreement.

    Two or three clusters are found again in anything that is longer than wide. Agreement a is
    therefore corrected for that of one Gaussian of the same shape, g, as the adjusted Rand index
    itself is for chance: (a - g) / (1 - g). Where it is complete for several K, joined clusters
    are as stable as what they are made of, and the largest K counts.

    Args:
        rows: For each K and seed "k", "seed", "silhouette", "bic", "agreement" and
            "agreement_one_gaussian".
    """
    ks, values = table(rows)
    shape = values["agreement_one_gaussian"]
    # One Gaussian may agree completely, too, by chance: then nothing is to be learned.
    above = (values["agreement"] - shape) / np.maximum(1 - shape, 1e-9)
    return {
        "silhouette": choose(ks, values["silhouette"], against_one=False),
        "BIC": choose(ks, -values["bic"], against_one=True),
        "agreement": choose(ks, above, against_one=True),
    }


def verdict(said: Mapping[str, Choice]) -> tuple[str, tuple[int, ...], str]:
    """Say how sure the number of clusters is; in brackets, each measure's own best.

    Returns:
        "agree" and the K that all measures are near to, "lean" and those of the only pair that
        has any, or "unclear" and every choice; and a sentence.

    Example:
        >>> said = {"silhouette": Choice(9, (9, 10)), "BIC": Choice(10, (10,)),
        ...         "agreement": Choice(4, (4,))}
        >>> verdict(said)
        ('lean', (10,), 'Lean to K = 10: silhouette (9), BIC (10); but agreement says 4.')
    """
    wide = sorted({k for choice in said.values() if choice.firm for k in choice.near})

    def common(*names: str) -> tuple[int, ...]:
        if not all(said[name].firm for name in names):
            return ()
        return tuple(sorted(set.intersection(*(set(said[name].near) for name in names))))

    def each(names: Iterable[str]) -> str:
        return ", ".join(f"{name} ({said[name]})" for name in names)

    if shared := common(*said):
        text = f"Agree on K = {_either(shared)}: {each(said)}"
        if tuple(wide) != shared:  # they meet, and each alone would take others as well
            text += f"; each alone allows others, in all {wide[0]} to {wide[-1]}"
        return "agree", shared, f"{text}."
    pairs = [pair for pair in combinations(said, 2) if common(*pair)]
    if len(pairs) == 1:
        shared, (other,) = common(*pairs[0]), said.keys() - set(pairs[0])
        text = f"Lean to K = {_either(shared)}: {each(pairs[0])}; but {other} says {said[other]}."
        return "lean", shared, text
    found = sorted((c for c in said.values() if c.best is not None), key=lambda c: c.best or 0)
    ks = tuple(dict.fromkeys(c.best for c in found if c.best is not None))
    text = "; ".join(f"{name} says {choice}" for name, choice in said.items())
    if len(ks) > 1:
        text = f"between {found[0]} and {found[-1]}; {text}"
    return "unclear", ks, f"No clear number: {text}."


def _either(ks: tuple[int, ...]) -> str:
    return " or ".join(filter(None, (", ".join(map(str, ks[:-1])), str(ks[-1]))))
