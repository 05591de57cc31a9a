"""Records of runs and of papers, as tables hold them, for tests."""


def row(seed: int = 0, **changes: str) -> dict[str, str]:
    """Make the record of a run as a table holds it."""
    scores = {"accuracy": 0.8 + seed / 100, "nmi": 0.7, "ari": 0.6, "f1": 0.5 + seed / 1000}
    return {
        "model": "dcec",
        "data": "usps",
        "seed": str(seed),
        "settings_sha256": "5" * 64,
        "data_sha256": "d" * 64,
        "device": "a CPU",
        "commit": "c" * 40,
        **{name: str(value) for name, value in scores.items()},
        "seconds": str(180 + 60 * seed),
        **changes,
    }


def swept(gamma: float, seed: int = 0, **changes: str) -> dict[str, str]:
    """Make the record of a run with another weight of the clustering term."""
    settings = {"config.loss.gamma": str(gamma), "config.model.gamma": str(gamma)}
    digest = {"settings_sha256": f"{gamma:064f}"}
    return row(seed, accuracy=str(0.5 + gamma / 10 + seed / 50)) | settings | digest | changes


def paper(**changes: str) -> dict[str, str]:
    return {
        "table": "dcec_table1",
        "experiment": "dcec_table1",
        "paper": "Guo et al.",
        "place": "Table 1",
        "data": "usps",
        "model": "dcec",
        "published_as": "",
        "accuracy": "0.7900",
        "nmi": "0.8257",
        "ari": "",
        **changes,
    }


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
