"""``make evidence-imported``: what elastic training of an imported ViT gives, beside Torch-Pruning and training from scratch.

For each seed a ViT of timm is trained on Fashion-MNIST and imported by growtas. At 75, 50 and 35 % of its MACs this measures the
test accuracy of

* subnets of the imported weights without training, with the parts in growtas' order (principal) or as they are (none), and of
  Torch-Pruning (Taylor importance) at the same MACs;
* subnets after one elastic training, Torch-Pruning's three models after a fine-tuning of as many epochs each, and models of the
  same architectures as the subnets, trained from scratch for as many epochs each.

``--only latency`` then searches the elastic supernet under two thirds of the imported model's latency on this CPU, and times the
exported files of both in turns with ONNX Runtime alone; the machine should be idle.

All trainings have growtas' elastic recipe: the same images, augmentation, optimiser, schedule and teacher. Only the learning
rates of pruned models and of training from scratch may be higher. Subnets and pruned models are chosen on the search split. The
test images come at the end.

Each result is a line of FOLDER/results.jsonl, and a finished one is not made again. ``pip install torch-pruning`` first.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from growtas import Subnet, api
from growtas.checkpoint import load_supernet
from growtas.cli.output import Notes
from growtas.costs import block_macs, count_costs, stem_and_head_macs
from growtas.data.evaluation import EvaluationSet, search_set, test_set
from growtas.files import append_json_line, read_json_lines
from growtas.nn.extract import extract
from growtas.runs import Run
from growtas.search.devices import parse_devices
from growtas.space import SearchSpace
from growtas.timm_vit import import_timm
from growtas.train.recipe import Recipe
from growtas.train.recipes.finetuning import ELASTIC_METHOD, elastic_recipe
from tests.evidence.front import train_alone
from tests.evidence.latency_limits import measure_subnet
from tests.reference import count_correct

MODEL = {"patch_size": 7, "embed_dim": 64, "depth": 6, "num_heads": 4}
CONFIG = {"pretrained_cfg_overlay": {"crop_pct": 1.0}}
BUDGETS = (0.75, 0.5, 0.35)
RATE_FROM_SCRATCH = 5.0
"""Learning rate of a training from scratch, in that of the elastic recipe."""
RATES_AFTER_PRUNING = (1.0, 5.0)
"""Learning rates of a pruned model's fine-tuning, in that of the elastic recipe; the better one on the search images counts."""
CALIBRATION = 512
FACTOR, TURNS, SECONDS = 1.5, 7, 2.0
"""Of the latency limit: by what the imported model misses it, and how both files are timed."""


def accuracy(model: Callable[[Tensor], Tensor], images: EvaluationSet) -> float:
    """The share of right answers, 0 to 1."""
    with torch.inference_mode():
        return count_correct(model, images) / len(images)


def timm_model() -> nn.Module:
    """The model that is trained first: a ViT of timm of 0.3 M parameters."""
    return timm.create_model("vit_tiny_patch16_224", img_size=28, in_chans=1, num_classes=10, **MODEL)


def base_recipe(seed: int, epochs: int) -> Recipe:
    """As timm's script would train it: AdamW with warm-up and a cosine, label smoothing, crops and flips."""
    return Recipe(
        name="timm", space="micro", data="fashion-mnist", method="finetune", epochs=epochs, batch_size=128, lr=2e-3, min_lr=1e-5,
        warmup_epochs=1, weight_decay=0.05, label_smoothing=0.1, crop_padding=2, hflip=0.5, clip_grad=1.0, seed=seed,
    )  # fmt: skip


def macs_of(space: SearchSpace, model: nn.Module) -> int:
    """The MACs of a model of timm whose blocks may have different sizes, counted as for subnets."""
    blocks = sum(block_macs(space, model.embed_dim, b.attn.num_heads, b.mlp.fc1.out_features) for b in model.blocks)
    return int(blocks + stem_and_head_macs(space, model.embed_dim))


def pruned(model: nn.Module, space: SearchSpace, share: float, images: Tensor, labels: Tensor, *, isomorphic: bool) -> nn.Module:
    """The model after Torch-Pruning's Taylor importance, with at most a share of its MACs.

    Heads, neurons and residual channels are pruned at one ratio, which is found by bisection.
    """
    import torch_pruning

    limit = share * macs_of(space, model)
    grads = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))

    def prune(ratio: float) -> nn.Module:
        smaller = copy.deepcopy(model)
        for parameter, grad in zip(smaller.parameters(), grads, strict=True):
            parameter.grad = grad
        pruner = torch_pruning.pruner.BasePruner(
            smaller,
            images[:1],
            importance=torch_pruning.importance.GroupTaylorImportance(),
            global_pruning=isomorphic,
            isomorphic=isomorphic,
            pruning_ratio=ratio,
            max_pruning_ratio=0.9,
            ignored_layers=[smaller.head],
            num_heads={block.attn.qkv: block.attn.num_heads for block in smaller.blocks},
            prune_num_heads=True,
            prune_head_dims=False,
            head_pruning_ratio=ratio,
        )
        pruner.step()
        for block in smaller.blocks:
            block.attn.num_heads = pruner.num_heads[block.attn.qkv]
            block.attn.attn_dim = block.attn.num_heads * block.attn.head_dim
        smaller.embed_dim = smaller.num_features = smaller.patch_embed.proj.out_channels
        smaller.zero_grad()
        return smaller

    low, high = 0.0, 0.8
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (low, middle) if macs_of(space, prune(middle)) <= limit else (middle, high)
    return prune(high)


@dataclass
class Results:
    """The finished results of a folder."""

    file: Path

    def get(self, **key: Any) -> dict[str, Any] | None:
        lines = read_json_lines(self.file)
        return next((line for line in lines if all(line.get(name) == value for name, value in key.items())), None)

    def add(self, **line: Any) -> None:
        append_json_line(self.file, line)
        sys.stderr.write(f"{line}\n")


def table(results: Results) -> str:
    """A Markdown table of the finished results: the mean test accuracy over the seeds, and in brackets their lowest and highest."""
    lines = [line for line in read_json_lines(results.file) if "share" in line]
    rows = ["| epochs | subnets and models | seeds | " + " | ".join(f"{share:.0%}" for share in BUDGETS) + " |"]
    rows.append("| --- " * (3 + len(BUDGETS)) + "|")
    for epochs, what in dict.fromkeys((line["epochs"], line["what"]) for line in lines):
        cells, seeds = [], set[int]()
        for share in BUDGETS:
            some = {
                line["seed"]: 100 * line["accuracy"]
                for line in lines
                if (line["epochs"], line["what"], line["share"]) == (epochs, what, share)
            }
            seeds |= some.keys()
            numbers = f"{statistics.mean(some.values()):.1f} ({min(some.values()):.1f}-{max(some.values()):.1f})" if some else "-"
            cells.append(numbers)
        rows.append(f"| {epochs} | {what} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def found(run: Run, share: float, folder: Path, limit_images: int) -> Subnet:
    """The subnet that a search finds at a share of the largest one's MACs."""
    limit = int(share * count_costs(run.space, run.space.largest).macs)
    return api.search(run.path, max_macs=limit, limit_images=limit_images, out=folder, progress=Notes()).chosen.subnet


def under_a_limit(imported: Run, elastic: Run, folder: Path, search_images: int) -> dict[str, Any]:
    """Searches under two thirds of the imported model's latency, and times the files of both without growtas."""
    (device,) = parse_devices(["cpu"], None, None, sizes=False)
    largest = imported.space.largest
    limit = measure_subnet(imported, largest, device, SECONDS) / FACTOR
    chosen = api.search(
        elastic.path, devices={"cpu": limit}, limit_images=search_images, out=folder, progress=Notes()
    ).chosen.subnet
    turns = [
        (measure_subnet(imported, largest, device, SECONDS), measure_subnet(elastic, chosen, device, SECONDS)) for _ in range(TURNS)
    ]
    before, after = (statistics.median(times) for times in zip(*turns, strict=True))
    return {"limit_ms": limit, "imported_ms": before, "found_ms": after, "turns": turns, "subnet": chosen.to_dict()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="Folder of the models and of results.jsonl.")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--base-epochs", type=int, default=25)
    parser.add_argument("--epochs", type=int, default=3, help="E: epochs of each training after the import.")
    parser.add_argument("--methods", nargs="*", default=["uniform", "sandwich", "growtas"])
    parser.add_argument("--only", nargs="*", default=["a", "elastic", "pruning", "scratch"])
    parser.add_argument("--search-images", type=int, default=2_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    results = Results(options.folder / "results.jsonl")
    for seed in options.seeds:
        run_seed(seed, options, results)
    sys.stdout.write(f"{table(results)}\n")


def run_seed(seed: int, options: argparse.Namespace, results: Results) -> None:
    """Makes the missing results of a seed."""
    folder = options.folder / str(seed)
    folder.mkdir(exist_ok=True)
    weights = folder / "base.safetensors"
    # The random weights are only imported for the run's images and preprocessing, which the first training needs.
    plain = _imported(folder, "start", "random", "none")
    model = timm_model()
    if not weights.is_file():
        torch.manual_seed(seed)
        model = timm_model()
        train_alone(model, plain, base_recipe(seed, options.base_epochs), f"base {seed}")
        save_file(model.state_dict(), weights)
    model.load_state_dict(load_file(weights))
    model.eval()
    imported = {order: _imported(folder, order, weights, order) for order in ("principal", "none")}
    ordered = imported["principal"]
    space, test, search = ordered.space, test_set(ordered), search_set(ordered)
    if not results.get(seed=seed, what="base"):
        results.add(seed=seed, what="base", accuracy=accuracy(model, test), macs=count_costs(space, space.largest).macs)
    calibration = search.subset(CALIBRATION)
    images, labels = calibration.images(0, len(calibration)), calibration.labels
    recipe = replace(
        elastic_recipe("micro", "fashion-mnist", 28), epochs=options.epochs, seed=seed, patience=None, method="finetune"
    )

    def subnets(run: Run, what: str, epochs: int) -> None:
        supernet = load_supernet(run.supernet_file)
        for share in BUDGETS:
            if not results.get(seed=seed, what=what, share=share, epochs=epochs):
                subnet = found(run, share, folder / f"search-{what}-{epochs}-{share}", options.search_images)
                tested = accuracy(extract(supernet, subnet), test)
                macs = count_costs(space, subnet).macs
                results.add(seed=seed, what=what, share=share, epochs=epochs, accuracy=tested, macs=macs, subnet=subnet.to_dict())

    if "a" in options.only:
        for order, run in imported.items():
            subnets(run, order, 0)
    if "elastic" in options.only:
        for method in options.methods:
            path = folder / f"elastic-{method}-{options.epochs}"
            if not (path / "run.json").is_file() or Run(path).info["state"] != "finished":
                settings = {"epochs": options.epochs, "seed": seed, "patience": None, "probe_epochs": options.epochs}
                start, cpu = time.perf_counter(), time.process_time()
                if (path / "run.json").is_file():
                    api.resume(path, progress=Notes())
                else:
                    api.train(
                        init=str(ordered.path), method=method, settings=settings, out=folder, name=path.name, progress=Notes()
                    )
                seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
                results.add(seed=seed, what=f"training {method}", epochs=options.epochs, **seconds)
            subnets(Run(path), method, options.epochs)
    if "latency" in options.only and not results.get(seed=seed, what="latency", epochs=options.epochs):
        elastic = Run(folder / f"elastic-{ELASTIC_METHOD}-{options.epochs}")
        line = under_a_limit(ordered, elastic, folder / "search-latency", options.search_images)
        tested = accuracy(extract(load_supernet(elastic.supernet_file), Subnet.from_dict(line["subnet"])), test)
        results.add(seed=seed, what="latency", epochs=options.epochs, accuracy=tested, **line)
    if "pruning" in options.only or "scratch" in options.only:
        for share in BUDGETS:
            some = search.subset(options.search_images)
            candidates = [pruned(model, space, share, images, labels, isomorphic=choice) for choice in (False, True)]
            smaller = max(candidates, key=lambda candidate: accuracy(candidate, some))
            facts = {"macs": macs_of(space, smaller), "heads": [block.attn.num_heads for block in smaller.blocks]}
            facts |= {"embed_dim": smaller.embed_dim, "hidden": [block.mlp.fc1.out_features for block in smaller.blocks]}
            if "pruning" in options.only and not results.get(seed=seed, what="torch-pruning", share=share, epochs=0):
                results.add(seed=seed, what="torch-pruning", share=share, epochs=0, accuracy=accuracy(smaller, test), **facts)
            if "pruning" in options.only and not results.get(seed=seed, what="torch-pruning", share=share, epochs=options.epochs):
                tuned = []
                for factor in RATES_AFTER_PRUNING:
                    torch.manual_seed(seed)
                    candidate, rate = copy.deepcopy(smaller), replace(recipe, lr=factor * recipe.lr)
                    seconds = train_alone(candidate, ordered, rate, f"torch-pruning {share} at {factor:g}", model)
                    tuned.append((accuracy(candidate, some), factor, seconds, candidate))
                _, factor, seconds, best = max(tuned, key=lambda one: one[0])
                line = {"epochs": options.epochs, "accuracy": accuracy(best, test), "rate": factor, "cpu_seconds": seconds, **facts}
                results.add(seed=seed, what="torch-pruning", share=share, **line)
            if "scratch" in options.only and not results.get(seed=seed, what="scratch", share=share, epochs=options.epochs):
                fresh = copy.deepcopy(smaller)
                torch.manual_seed(seed)
                fresh.init_weights()
                higher = replace(recipe, lr=RATE_FROM_SCRATCH * recipe.lr)
                train_alone(fresh, ordered, higher, f"from scratch {share}", model)
                line = {"epochs": options.epochs, "accuracy": accuracy(fresh, test), **facts}
                results.add(seed=seed, what="scratch", share=share, **line)


def _imported(folder: Path, name: str, weights: str | Path, order: str) -> Run:
    path = folder / name
    if not (path / "run.json").is_file():
        options = {**MODEL, **CONFIG}
        if weights == "random":
            options |= {"img_size": 28, "in_chans": 1, "num_classes": 10}
        import_timm("vit_tiny_patch16_224", weights, data="fashion-mnist", order=order, options=options, out=folder, run_name=name)
    return Run(path)


if __name__ == "__main__":
    main()
