"""timm models as baselines: exported to ONNX in the same way as growtas' networks, and cached."""

from __future__ import annotations

import contextlib
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas.errors import BuildError, CheckpointError, UsageError
from growtas.export.artifact import Artifact, load_artifact, versions, write_manifest
from growtas.files import ensure_writable, replacing

if TYPE_CHECKING:
    from torch import nn

TIMM = "timm:"
WEIGHTS = "random, seed 0"
_NOISE = 0.02
_TRACED_MAX_BATCH = 1 << 16


def is_model(name: str) -> bool:
    """Whether timm has a model of this name, with or without a pretrained tag."""
    import timm

    return bool(timm.is_model(name))


def check_name(name: str, option: str | None = None) -> str:
    """Returns the name, if timm has such a model.

    Args:
        option: the option with this value, if its value could also be an artifact; for the message.

    Raises:
        UsageError: the name is unknown; the message gives the most similar ones.
    """
    import timm

    if is_model(name):
        return name
    close = difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else "; timm.list_models() lists the names"
    subject = f"{option} is {name!r}, which is neither an artifact nor a" if option else f"{TIMM}{name}: no"
    raise UsageError(f"{subject} model that timm knows{hint}")


def create(name: str) -> nn.Module:
    """Makes a timm model with random weights, in eval mode. Nothing is downloaded, because latency depends only on shapes.

    Noise is added to every parameter, because exporters merge equal tensors and drop zeros, which a trained model doesn't have.
    """
    import timm
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(name, pretrained=False).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=_NOISE)
    return model


def image_shape(model: nn.Module) -> tuple[int, int, int]:
    """Returns channels, height and width of a timm model's images."""
    configuration: Any = model.pretrained_cfg
    channels, height, width = configuration["input_size"]
    return int(channels), int(height), int(width)


def count_macs(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Counts the multiply-accumulates of convolutions and matrix products (also in attention) for one image, as growtas does."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter only knows the products of the MATH implementation of attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *shape))
    return int(counter.get_total_flops()) // 2


def exported(name: str, folder: Path) -> Artifact:
    """Returns the ONNX file of a timm model with its manifest. It is exported unless the folder has it from the same versions.

    Raises:
        BuildError: the model can't be exported.
        OutputError: the folder can't be written.
    """
    from growtas.export.graph.exporter import DEFAULT_OPSET

    made_by = versions()
    key = f"torch-{made_by['torch']}-timm-{made_by['timm']}-opset-{DEFAULT_OPSET}".replace("+", "-")
    path = folder / key / f"{name}.onnx"
    with contextlib.suppress(CheckpointError):  # it is absent or incomplete
        return load_artifact(path)
    ensure_writable(path.parent)
    model = create(name)
    export_onnx(name, model, path, DEFAULT_OPSET)
    return write_manifest(path, describe(name, model))


def describe(name: str, model: nn.Module) -> dict[str, Any]:
    """Returns the content of a timm model's manifest: its costs, input and output."""
    import torch

    shape = image_shape(model)
    with torch.no_grad():
        classes = int(model(torch.zeros(1, *shape)).shape[-1])
    return {
        "precision": "fp32",
        "timm": {"model": name, "weights": WEIGHTS},
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "macs": count_macs(model, shape),
        "input": {"name": "images", "dtype": "float32", "shape": ["batch", *shape]},
        "output": {"name": "logits", "dtype": "float32", "shape": ["batch", classes]},
    }


def export_onnx(name: str, model: nn.Module, path: Path, opset: int) -> None:
    """Writes the graph of a timm model as growtas writes its own: dynamic batch, slimmed.

    Raises:
        BuildError: the model can't be exported.
    """
    import onnx
    import torch

    from growtas.export.graph.edit import to_proto
    from growtas.export.graph.exporter import BATCH, INPUT, OUTPUT, quiet, slim

    with quiet():
        try:
            program = torch.onnx.export(
                model,
                (torch.zeros(2, *image_shape(model)),),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=({0: torch.export.Dim(BATCH, min=1, max=_TRACED_MAX_BATCH)},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
        except Exception as error:  # the exceptions of tracing, decomposing and translating share no base class
            raise BuildError(f"{TIMM}{name}: the ONNX exporter failed ({' '.join(str(error).split())[:200]})") from error
    assert program is not None
    with replacing(path) as temporary:
        onnx.save(to_proto(slim(program.model_proto)), temporary)
