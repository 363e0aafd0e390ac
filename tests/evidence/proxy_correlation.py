"""``python -m tests.evidence.proxy_correlation``: rank correlation of AZ-NAS with accuracies of trained supernets.

It reads the trainings of the ledger that have accuracies of the 200 subnets of one size and of the 14 probes, and prints Spearman's
rank correlation with the test accuracies for the score, for each proxy, and for the parameters. It trains nothing.
"""

from __future__ import annotations

import sys
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from growtas import Subnet, load_space
from growtas.costs import count_costs
from growtas.files import read_json
from growtas.search.az_nas import AzNas, rank_scores
from tests.evidence.ledger import SUBNETS, read_ledger

SEEDS = (0, 1, 2)
"""Seeds of the random weights, images and signs of AZ-NAS."""


def columns(subnets: list[Subnet], seed: int) -> dict[str, NDArray[np.float64]]:
    """The score, its parts and the parameters of some subnets."""
    space = load_space("micro")
    measure = AzNas(space, seed=seed)
    proxies = [measure(subnet) for subnet in subnets]
    parts = {name: np.array([getattr(one, name) for one in proxies], float) for name in ("expressivity", "trainability", "macs")}
    params = np.array([count_costs(space, subnet).params for subnet in subnets], float)
    return {"score": rank_scores(proxies), **parts, "params": params}


def main() -> None:
    """Prints a Markdown table."""
    recorded = read_json(SUBNETS)
    groups = {
        "200 subnets of one size": [Subnet.from_dict(entry) for entry in recorded["band"]["subnets"]],
        "14 probes of all sizes": [Subnet.from_dict(entry) for entry in recorded["probes"].values()],
    }
    lines = [line for line in read_ledger().values() if line["method"] in ("uniform", "growtas") and line["band"]]
    sys.stdout.write(f"trainings: {', '.join(sorted(line['name'] + ', seed ' + str(line['seed']) for line in lines))}\n")
    for title, subnets in groups.items():
        accuracies = [
            line["band"] if title.startswith("200") else [values["test"] for values in line["probes"].values()] for line in lines
        ]
        measured = [columns(subnets, seed) for seed in SEEDS]
        for name in measured[0]:
            values = [spearmanr(table[name], found).statistic for table in measured for found in accuracies]
            sys.stdout.write(f"| {title} | {name} | {fmean(values):.2f} | {min(values):.2f} to {max(values):.2f} |\n")


if __name__ == "__main__":
    main()
