"""Small runs to export from: a randomly initialised supernet in a run folder, as a training leaves it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnx_ir as ir
import onnxscript
import pytest
import torch
from safetensors.torch import save

from growtas.checkpoint import save_supernet
from growtas.cli.main import main
from growtas.costs import count_costs
from growtas.export.graph import assemble, exporter
from growtas.export.graph.edit import to_proto
from growtas.export.runtimes.base import is_installed
from growtas.files import sha256, write_json
from growtas.nn.supernet import Supernet
from growtas.nn.vit import VisionTransformer
from growtas.progress import Progress
from growtas.runs import Run, create_run
from growtas.space import SearchSpace
from growtas.subnet import Subnet

EXPORT_MODEL = exporter.export_model
"""The exporter itself; see :func:`export_networks_once`."""

needs_rtx = pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="tensorrt-rtx is not installed")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")

# Blocks make the exporter slow, so there are few; everything else is as in a real space.
TINY = SearchSpace(
    name="tiny",
    embed_dim=(16, 24),
    num_heads=(1, 2),
    mlp_ratio=(2.0, 3.0),
    depth=(1, 2),
    head_dim=8,
    image_size=16,
    patch_size=4,
    num_classes=10,
    max_relative_position=2,
)
SUBNET = Subnet(16, (2,), (3.0,))
DIGITS_PREPROCESS: dict[str, Any] = {
    "image_size": TINY.image_size,
    "in_chans": 3,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}


def digits_record() -> dict[str, Any]:
    """What a run on scikit-learn's digits records of its data."""
    from growtas.data.sources import open_data

    return open_data("digits").record()


def random_supernet(space: SearchSpace = TINY, seed: int = 0) -> Supernet:
    """A supernet whose every weight is random, biases and tables included, so that a wrong one shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    supernet = Supernet(space).eval()
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + torch.randn(parameter.shape, generator=generator) * 0.2)
    return supernet


def make_run(root: Path, *, space: SearchSpace = TINY, data: bool = True, name: str = "tiny", seed: int = 0) -> Run:
    """A finished run on the digits (or without data, as an imported one), with one checkpoint."""
    info = {
        "state": "finished" if data else "imported",
        "space": space.to_dict(),
        "method": "growtas",
        "seed": 0,
        "data": digits_record() if data else None,
        "preprocess": {**DIGITS_PREPROCESS, "image_size": space.image_size},
        "class_names": [str(digit) for digit in range(10)] if data else None,
    }
    run = create_run(root, name, info)
    add_checkpoint(run, epoch=1, seed=seed)
    return run


def add_checkpoint(run: Run, *, epoch: int, seed: int) -> Path:
    """A further checkpoint of a run, with other random weights."""
    folder = run.path / "checkpoints" / f"epoch-{epoch:04d}"
    folder.mkdir(parents=True)
    save_supernet(folder / "supernet.safetensors", random_supernet(run.space, seed))
    write_json(folder / "state.json", {"epoch": epoch, "step": 0})
    return folder / "supernet.safetensors"


def add_search(run: Run, subnet: Subnet = SUBNET, *, device: str | None = None, **changes: Any) -> Path:
    """The ``subnet.json`` that a search of the run's newest checkpoint would have written."""
    costs = count_costs(run.space, subnet)
    latency = {
        "ms": 0.4,
        "kind": "modelled",
        "device": device,
        "percentile": "p50",
        "batch": 1,
        "precision": "fp16",
        "runtime": "t",
    }
    written = {
        **subnet.to_dict(),
        "params": costs.params,
        "macs": costs.macs,
        "accuracy": 0.5,
        "latency": latency if device else None,
        "device": device,
        "limits": {"max_params": None, "max_macs": None, "max_latency_ms": None},
        "space": run.space.name,
        "checkpoint_sha256": sha256(run.supernet_file),
        **changes,
    }
    path = run.path / "search" / "subnet.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, written)
    return path


# The plain ViTs that differ in their graphs. Exporting takes a second, so each is exported in another opset.
PLAIN_OPSETS = {"class token": 18, "mean": 19, "registers": 20, "norm before mean": 21, "qk_norm": 22}


class PlainFile(NamedTuple):
    """A plain ViT of two blocks, and its ONNX file."""

    model: VisionTransformer
    path: Path


class Recorder(Progress):
    """Collects what a function reports."""

    def __init__(self, *, stages: list[str] | None = None, notes: list[str] | None = None) -> None:
        self.stages, self.notes = [] if stages is None else stages, [] if notes is None else notes

    def stage(self, name: str, total: int | None = None) -> None:
        self.stages.append(name)

    def note(self, text: str) -> None:
        self.notes.append(text)


def export_networks_once(patch: pytest.MonkeyPatch, factory: pytest.TempPathFactory) -> None:
    """Makes the exporter quick, which otherwise takes seconds: in a run of the tests, also of several processes, it traces equal
    networks once.

    The exporter of torch also reads the source of 500 operators for every export; here a process does so once.
    """
    own = factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "traced"
    folder.mkdir(exist_ok=True)

    def export_model(model: VisionTransformer, *, opset: int = exporter.DEFAULT_OPSET) -> ir.Model:
        described = json.dumps([model.architecture.to_dict(), opset]).encode()
        path = folder / hashlib.sha256(save(model.state_dict()) + described).hexdigest()
        if not path.exists():
            made = own / path.name
            made.write_bytes(to_proto(EXPORT_MODEL(model, opset=opset)).SerializeToString())
            made.replace(path)
        return ir.from_proto(onnx.load_from_string(path.read_bytes()))

    for module in (exporter, assemble):
        patch.setattr(module, "export_model", export_model)
    read = onnxscript.TracedOnnxFunction.function_ir.fget
    patch.setattr(onnxscript.TracedOnnxFunction, "function_ir", property(functools.cache(read)))


class Cli:
    """Runs a command line as ``growtas`` would, in this process and in an empty working folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["growtas", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = self._capsys.readouterr()
        code = stop.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    def fails(self, *arguments: str | Path) -> tuple[int, str]:
        """Exit code and the one sentence on stderr."""
        code, out, err = self(*arguments)
        assert out == ""
        sentences = [line for line in err.splitlines() if line.startswith("growtas: ")]
        assert len(sentences) == 1, err
        assert "Traceback" not in err
        return code, sentences[0]
