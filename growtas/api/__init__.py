"""The Python API: a function with a typed result for everything that a command does. The commands only parse options and print.

    from growtas import api

    run = api.train(recipe="digits-demo", epochs=2)
    hit = api.search(run, devices={"a10": "5ms"})
    artifacts = api.export(run, hit.subnet, formats=["onnx", "trt"])
    api.verify(artifacts)
    api.bench(artifacts)
    api.predict(artifacts[0], ["cat.png"])

Every long-running function has a parameter ``progress`` (:class:`growtas.progress.Progress`). Importing this package imports
neither torch nor onnx: each name is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from growtas.api.benchmarking import bench
    from growtas.api.diagnosis import Ability, Diagnosis, doctor
    from growtas.api.exporting import ExportedArtifacts, export
    from growtas.api.prediction import Prediction, Predictions, predict
    from growtas.api.profiling import ProfileResult, profile
    from growtas.api.proxy_searching import ProxySearchResult, search_by_proxy
    from growtas.api.reporting import report
    from growtas.api.search_results import SearchResult
    from growtas.api.searching import search
    from growtas.api.training import RecipeOptions, Run, finetune, load_run, plan_training, resume, train
    from growtas.autoformer import import_autoformer
    from growtas.costs import Costs, count_costs
    from growtas.export.artifact import Artifact, Manifest, load_artifact
    from growtas.export.benchmark.report import BenchReport
    from growtas.export.inspection import inspect
    from growtas.export.pipeline.model_card import write_card
    from growtas.export.pipeline.triton import write_triton
    from growtas.export.serving.launch import serve
    from growtas.export.serving.options import ServeOptions
    from growtas.export.serving.predictor import Predictor
    from growtas.export.verification.run import VerifyReport, verify
    from growtas.latency.catalogue import measured_profiles, modelled_profiles
    from growtas.progress import Progress
    from growtas.runs import list_runs
    from growtas.space import SearchSpace, load_space
    from growtas.subnet import Subnet
    from growtas.timm_vit import import_timm
    from growtas.train.plan import TrainingPlan
    from growtas.train.recipe import Recipe
    from growtas.train.recipe_fields import RecipeFields, recipe_fields
    from growtas.train.recipes import RECIPES, find_recipe
    from growtas.watch.report import Overview, Report

_MODULES: dict[str, str] = {
    "Ability": "growtas.api.diagnosis",
    "Diagnosis": "growtas.api.diagnosis",
    "doctor": "growtas.api.diagnosis",
    "RECIPES": "growtas.train.recipes",
    "Artifact": "growtas.export.artifact",
    "BenchReport": "growtas.export.benchmark.report",
    "Costs": "growtas.costs",
    "ExportedArtifacts": "growtas.api.exporting",
    "Manifest": "growtas.export.artifact",
    "Overview": "growtas.watch.report",
    "Prediction": "growtas.api.prediction",
    "Predictions": "growtas.api.prediction",
    "Predictor": "growtas.export.serving.predictor",
    "ProfileResult": "growtas.api.profiling",
    "ProxySearchResult": "growtas.api.proxy_searching",
    "Progress": "growtas.progress",
    "Recipe": "growtas.train.recipe",
    "RecipeFields": "growtas.train.recipe_fields",
    "RecipeOptions": "growtas.api.training",
    "Report": "growtas.watch.report",
    "Run": "growtas.api.training",
    "SearchResult": "growtas.api.search_results",
    "SearchSpace": "growtas.space",
    "ServeOptions": "growtas.export.serving.options",
    "Subnet": "growtas.subnet",
    "TrainingPlan": "growtas.train.plan",
    "VerifyReport": "growtas.export.verification.run",
    "bench": "growtas.api.benchmarking",
    "count_costs": "growtas.costs",
    "export": "growtas.api.exporting",
    "find_recipe": "growtas.train.recipes",
    "finetune": "growtas.api.training",
    "import_autoformer": "growtas.autoformer",
    "import_timm": "growtas.timm_vit",
    "inspect": "growtas.export.inspection",
    "list_runs": "growtas.runs",
    "load_artifact": "growtas.export.artifact",
    "load_run": "growtas.api.training",
    "load_space": "growtas.space",
    "measured_profiles": "growtas.latency.catalogue",
    "modelled_profiles": "growtas.latency.catalogue",
    "plan_training": "growtas.api.training",
    "predict": "growtas.api.prediction",
    "profile": "growtas.api.profiling",
    "recipe_fields": "growtas.train.recipe_fields",
    "report": "growtas.api.reporting",
    "resume": "growtas.api.training",
    "search": "growtas.api.searching",
    "search_by_proxy": "growtas.api.proxy_searching",
    "serve": "growtas.export.serving.launch",
    "train": "growtas.api.training",
    "verify": "growtas.export.verification.run",
    "write_card": "growtas.export.pipeline.model_card",
    "write_triton": "growtas.export.pipeline.triton",
}
"""The module that defines each public name."""

__all__ = [
    "RECIPES",
    "Ability",
    "Artifact",
    "BenchReport",
    "Costs",
    "Diagnosis",
    "ExportedArtifacts",
    "Manifest",
    "Overview",
    "Prediction",
    "Predictions",
    "Predictor",
    "ProfileResult",
    "Progress",
    "ProxySearchResult",
    "Recipe",
    "RecipeFields",
    "RecipeOptions",
    "Report",
    "Run",
    "SearchResult",
    "SearchSpace",
    "ServeOptions",
    "Subnet",
    "TrainingPlan",
    "VerifyReport",
    "bench",
    "count_costs",
    "doctor",
    "export",
    "find_recipe",
    "finetune",
    "import_autoformer",
    "import_timm",
    "inspect",
    "list_runs",
    "load_artifact",
    "load_run",
    "load_space",
    "measured_profiles",
    "modelled_profiles",
    "plan_training",
    "predict",
    "profile",
    "recipe_fields",
    "report",
    "resume",
    "search",
    "search_by_proxy",
    "serve",
    "train",
    "verify",
    "write_card",
    "write_triton",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
