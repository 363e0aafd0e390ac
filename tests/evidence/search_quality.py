"""``python -m tests.evidence.search_quality RUN``: how close does the search come to the true best subnets?

In a part of the search space micro, every subnet (3,840) can be evaluated on some hundred images of the run's search split. This is
done once, and the table is kept in build/search_quality_table.json. Then evolution and NSGA-II search this table instead of the
supernet, under random limits, with at most a fifth of the evaluations. It writes build/search_quality.json:

* evolution: the difference between the best subnet found and the true best under the limit, for each seed, with the paper's
  settings and with as many evaluations in other populations;
* NSGA-II: the share of the true front's hypervolume, for accuracy and modelled latency;
* both with the predictor and half of the evaluations (and, to compare, without it): the difference to the true best subnet, the
  mean difference between the eight best and the true eight best (the finalists of a measured limit), and the share of the
  hypervolume, for fronts also without a limit.

The duration of a search's parts is in the result.json of every search, and not repeated here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from growtas import Subnet
from growtas.batch import SubnetBatch
from growtas.files import read_json, sha256, write_json
from growtas.runs import Run, find_run
from growtas.space import SearchSpace

TABLE = Path("build/search_quality_table.json")
CHOICES = {"embed_dim": (32, 48, 64), "num_heads": (2, 4), "mlp_ratio": (2.0, 4.0), "depth": (4, 5)}
SHARE = 0.2
WAYS = ("50", "25", "half", "predicted", "random")
"""Populations of 50 and 25 with all evaluations, half of the evaluations without and with the predictor, and random subnets."""
FINALISTS = 8


def every_subnet(space: SearchSpace) -> list[Subnet]:
    """All subnets of a space, each once."""
    subnets = []
    for dim, depth in itertools.product(space.embed_dim, space.depth):
        for heads in itertools.product(space.num_heads, repeat=depth):
            subnets += [Subnet(dim, heads, ratios) for ratios in itertools.product(space.mlp_ratio, repeat=depth)]
    return subnets


def make_table(run: Run, images: int) -> dict[str, Any]:
    """Evaluates every subnet of the part of the space, unless this was done for the same checkpoint and number of images."""
    from growtas.checkpoint import load_supernet
    from growtas.data.evaluation import search_set
    from growtas.search.evaluation.evaluator import SubnetEvaluator

    space, digest = run.space.replace(name="micro-part", **CHOICES), sha256(run.supernet_file)
    if TABLE.exists() and (table := read_json(TABLE, "table"))["checkpoint_sha256"] == digest and table["images"] == images:
        return table
    subnets, start = every_subnet(space), time.perf_counter()
    with SubnetEvaluator(load_supernet(run.supernet_file), search_set(run).subset(images)) as evaluate:
        rows = []
        for subnet, evaluation in evaluate(subnets):
            rows.append([subnet.to_dict(), evaluation.accuracy, evaluation.loss])
            if len(rows) % 100 == 0:
                sys.stderr.write(f"{len(rows)} of {len(subnets)} in {time.perf_counter() - start:.0f} s\n")
    TABLE.parent.mkdir(exist_ok=True)
    table = {"run": str(run.path), "checkpoint_sha256": digest, "images": images, "space": space.to_dict(), "rows": rows}
    write_json(TABLE, table)
    return table


def main() -> None:
    """Makes the table and searches it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="Trained run of micro (default: the newest in ./runs).")
    parser.add_argument("--images", type=int, default=500, help="Number of images of the search split (default: 500).")
    parser.add_argument("--seeds", type=int, default=10, help="Number of seeds (default: 10).")
    options = parser.parse_args()
    report = judge(make_table(find_run(options.run), options.images), options.seeds)
    write_json(Path("build/search_quality.json"), report)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


def judge(table: dict[str, Any], seeds: int) -> dict[str, Any]:
    """Runs evolution and NSGA-II on the table, for each seed under a random limit on the parameters."""
    from growtas.costs import count_costs_batch
    from growtas.latency.modelled.profile import load_profile
    from growtas.latency.modelled.roofline import RooflineLatency
    from growtas.search.evolution import EvolutionConfig, evolve
    from growtas.search.limits import Limits
    from growtas.search.pareto import evolve_front, hypervolume

    space = SearchSpace.from_dict(table["space"])
    rows = {Subnet.from_dict(subnet): (accuracy, -loss) for subnet, accuracy, loss in table["rows"]}
    everything = list(rows)
    batch = SubnetBatch.from_subnets(everything)
    params = count_costs_batch(space, batch)[0]
    of = dict(zip(everything, params.tolist(), strict=True))

    def scores(subnets: Any) -> Any:
        return [(*rows[subnet], -of[subnet]) for subnet in subnets]

    latency = RooflineLatency(profile=load_profile("a10"), space=space)
    worst = np.array([0.0, float(latency.predict_ms(batch).max()) * 1.01])

    def volume(subnets: Any) -> float:
        values = np.column_stack(
            [[-rows[subnet][0] for subnet in subnets], latency.predict_ms(SubnetBatch.from_subnets(list(subnets)))]
        )
        # The reference point is the worst accuracy of the table. With zero, almost any subnet would have a large share.
        return hypervolume(values, np.array([-min(accuracy for accuracy, _ in rows.values()), worst[1]]))

    def costs(subnets: SubnetBatch) -> Any:
        return latency.predict_ms(subnets)[:, None]

    results, budget = [], int(SHARE * len(everything))
    for seed in range(seeds):
        rng = np.random.default_rng(1000 + seed)
        limit = int(np.quantile(params, rng.uniform(0.2, 1.0)))
        feasible = Limits(max_params=limit).feasible(space)
        legal = [subnet for subnet in everything if of[subnet] <= limit]
        best = max(rows[subnet][0] for subnet in legal)
        allowed = min(budget, int(SHARE * len(legal)))
        row: dict[str, Any] = {"seed": seed, "max_params": limit, "legal": len(legal), "best": best, "evaluations": allowed}
        for population in (50, 25):
            config = EvolutionConfig(population=population, generations=max(1, allowed // population))
            found = evolve(space, scores, feasible, np.random.default_rng(seed), config)
            row[f"behind_{population}"] = best - found.ranked[0][1][0]
        draws = rng.permutation(len(legal))[:allowed]
        row["behind_random"] = best - max(rows[legal[draw]][0] for draw in draws)
        for population in (50, 25):
            config = EvolutionConfig(population=population, generations=allowed // population)
            front = evolve_front(space, scores, costs, feasible, np.random.default_rng(seed), config)
            row[f"hypervolume_{population}"] = volume([subnet for subnet, _ in front.ranked]) / volume(legal)
        top = np.sort([rows[subnet][0] for subnet in legal])[::-1][:FINALISTS].mean()
        for name, predict in (("half", False), ("predicted", True)):
            config = EvolutionConfig(population=25, generations=allowed // 50)
            found = evolve(space, scores, feasible, np.random.default_rng(seed), config, predict=predict)
            row[f"behind_{name}"] = best - found.ranked[0][1][0]
            row[f"finalists_behind_{name}"] = top - float(np.mean([score[0] for _, score in found.ranked[:FINALISTS]]))
            front = evolve_front(space, scores, costs, feasible, np.random.default_rng(seed), config, predict=predict)
            row[f"hypervolume_{name}"] = volume([subnet for subnet, _ in front.ranked]) / volume(legal)
        row["hypervolume_random"] = volume([legal[draw] for draw in draws]) / volume(legal)
        results.append(row)
    unlimited: dict[str, list[float]] = {"25": [], "half": [], "predicted": []}
    for seed, (name, shares) in itertools.product(range(seeds), unlimited.items()):
        config = EvolutionConfig(population=25, generations=budget // (25 if name == "25" else 50))
        feasible, predict = Limits().feasible(space), name == "predicted"
        front = evolve_front(space, scores, costs, feasible, np.random.default_rng(seed), config, predict=predict)
        shares.append(volume([subnet for subnet, _ in front.ranked]) / volume(everything))
    summary = {f"within_0.2_points_{name}": sum(row[f"behind_{name}"] <= 0.002 + 1e-9 for row in results) for name in WAYS}
    return {
        "run": table["run"],
        "images": table["images"],
        "subnets": len(everything),
        "seeds": seeds,
        **summary,
        **{f"least_hypervolume_{name}": min(row[f"hypervolume_{name}"] for row in results) for name in WAYS},
        **{f"mean_hypervolume_{name}": float(np.mean([row[f"hypervolume_{name}"] for row in results])) for name in WAYS},
        **{
            f"finalists_behind_{name}": float(np.mean([row[f"finalists_behind_{name}"] for row in results]))
            for name in ("half", "predicted")
        },
        "hypervolume_without_limit": unlimited,
        "results": results,
    }


if __name__ == "__main__":
    main()
