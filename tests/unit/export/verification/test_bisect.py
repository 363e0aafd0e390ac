from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from growtas.checkpoint import save_model
from growtas.errors import BuildError, CheckpointError, ParityError, UsageError
from growtas.export.graph.exporter import export_onnx
from growtas.export.graph.tensors import OnnxTensors, check_half_range, half_range
from growtas.export.open import open_session
from growtas.export.verification.bisect import bisect_artifact, bisect_onnx
from growtas.nn.extract import extract
from growtas.nn.vit import VisionTransformer
from growtas.subnet import Subnet
from tests.export_helpers import PlainFile, random_supernet
from tests.verify_helpers import PRECISIONS, TWO_BLOCKS, edit, in_pixels, in_precision, swapped_heads, wrong_bias

IMAGES = np.random.default_rng(0).standard_normal((32, 3, 16, 16), np.float32)
FEW = IMAGES[:4]
LAYERS = [
    "patch embedding",
    "block 0 attention",
    "block 0 MLP",
    "block 1 attention",
    "block 1 MLP",
    "final norm",
    "head",
]


@pytest.fixture(scope="module")
def two_blocks() -> VisionTransformer:
    return extract(random_supernet(), TWO_BLOCKS).eval()


@pytest.fixture(scope="module")
def exported(two_blocks: VisionTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bisect") / "two.onnx"
    export_onnx(two_blocks, path)
    return path


def planted(exported: Path, folder: Path, precision: str, fault: Callable[[onnx.ModelProto], None]) -> Path:
    proto = onnx.load(exported)
    fault(proto)
    onnx.save(proto, folder / "faulty.onnx")
    in_precision(folder / "faulty.onnx", folder / "made.onnx", precision, IMAGES)
    return folder / "made.onnx"


def nothing(proto: onnx.ModelProto) -> None:
    pass


def wrong_positions(proto: onnx.ModelProto) -> None:
    edit(proto, "positions", lambda values: values[:, ::-1])


def wrong_head(proto: onnx.ModelProto) -> None:
    edit(proto, "head.bias", lambda values: -values)


def wrong_projection(proto: onnx.ModelProto) -> None:
    edit(proto, "blocks.0.attn.proj.weight", lambda values: values * np.float32(1.5))


def wrong_norm(proto: onnx.ModelProto) -> None:
    edit(proto, "norm.bias", lambda values: -values, exact=True)


def wrong_key_norm(proto: onnx.ModelProto) -> None:
    edit(proto, "blocks.1.attn.k_norm.weight", lambda values: values[::-1])


FAULTS = [
    (wrong_positions, "patch embedding"),
    (wrong_projection, "block 0 attention"),
    (swapped_heads, "block 1 attention"),
    (wrong_bias, "block 1 MLP"),
    (wrong_head, "head"),
]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_faithful_artifact_has_no_layer_that_stands_out(
    exported: Path, two_blocks: VisionTransformer, precision: str, tmp_path: Path
) -> None:
    path = planted(exported, tmp_path, precision, nothing)
    found = bisect_artifact(path, two_blocks, FEW, precision=precision)
    assert [layer.layer for layer in found.layers] == LAYERS
    assert found.first is None, found.summary
    assert "no layer stands out against the static ViT" in found.summary
    against = bisect_onnx(path, exported, FEW, precision=precision)
    assert against.first is None, against.summary


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("fault", "layer"), FAULTS)
def test_the_faulty_layer_is_named(
    exported: Path,
    two_blocks: VisionTransformer,
    fault: Callable[[onnx.ModelProto], None],
    layer: str,
    precision: str,
    tmp_path: Path,
) -> None:
    found = bisect_artifact(planted(exported, tmp_path, precision, fault), two_blocks, FEW, precision=precision)
    assert found.first is not None, found
    assert found.first.layer == layer
    assert found.first.after > 3 * found.first.before
    assert f"is {layer} ({found.first.tensor}): error {found.first.before:.1e} before" in found.summary
    written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (written["first"]["layer"], len(written["layers"])) == (layer, len(LAYERS))


def test_errors_are_those_of_the_streams_that_hooks_see(exported: Path, two_blocks: VisionTransformer, tmp_path: Path) -> None:
    path = planted(exported, tmp_path, "fp16", nothing)
    found = {layer.layer: layer for layer in bisect_artifact(path, two_blocks, FEW, precision="fp16").layers}
    seen: dict[str, np.ndarray] = {}
    hooked = {"block 0 MLP": two_blocks.blocks[0], "block 1 MLP": two_blocks.blocks[1], "final norm": two_blocks.norm}
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.__setitem__(name, output.numpy().copy()))
        for name, module in hooked.items()
    ]
    with torch.no_grad():
        seen["head"] = two_blocks(torch.from_numpy(FEW)).numpy()
    for handle in handles:
        handle.remove()
    proto = onnx.load(path)
    proto.graph.output.extend(onnx.ValueInfoProto(name=found[name].tensor) for name in seen if name != "head")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, want in seen.items():
        (got,) = session.run([found[name].tensor], {"images": FEW})
        expected = np.linalg.norm(got.astype(float).ravel() - want.astype(float).ravel()) / np.linalg.norm(want.astype(float))
        assert found[name].after == pytest.approx(expected, rel=0.05), name
    # What comes out of one layer goes into the next.
    ordered = list(found.values())
    assert ordered[0].before == 0.0
    assert [layer.before for layer in ordered[1:]] == [layer.after for layer in ordered[:-1]]


def test_an_error_further_up_is_not_held_against_a_layer(exported: Path, two_blocks: VisionTransformer, tmp_path: Path) -> None:
    found = bisect_artifact(planted(exported, tmp_path, "fp32", wrong_projection), two_blocks, FEW, precision="fp32")
    behind = found.layers[2:]
    assert all(layer.before > 1e-2 for layer in behind)
    assert all(layer.own < 1e-5 for layer in behind)


def test_weights_of_another_training_differ_from_the_first_layer_on(exported: Path) -> None:
    other = extract(random_supernet(seed=9), TWO_BLOCKS)
    found = bisect_artifact(exported, other, FEW, precision="fp32")
    assert found.first is not None
    assert found.first.layer == "patch embedding"


def test_a_model_is_left_as_it_was(exported: Path, two_blocks: VisionTransformer) -> None:
    before = {name: value.clone() for name, value in two_blocks.state_dict().items()}
    bisect_artifact(exported, two_blocks, FEW, precision="fp32")
    assert all(torch.equal(value, before[name]) and value.dtype == torch.float32 for name, value in two_blocks.state_dict().items())


def test_a_safetensors_file(two_blocks: VisionTransformer, tmp_path: Path) -> None:
    faulty = extract(random_supernet(), TWO_BLOCKS)
    with torch.no_grad():
        faulty.blocks[1].norm2.bias += 0.5
    for name, model, first in (("good", two_blocks, None), ("bad", faulty, "block 1 MLP")):
        save_model(tmp_path / f"{name}.safetensors", model)
        found = bisect_artifact(tmp_path / f"{name}.safetensors", two_blocks, FEW, precision="fp32").first
        assert (found.layer if found else None) == first


def test_what_the_artifact_is_fed_is_the_caller_s_to_say(exported: Path, two_blocks: VisionTransformer, tmp_path: Path) -> None:
    path = tmp_path / "pixels.onnx"
    onnx.save(in_pixels(onnx.load(exported)), path)
    levels = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), np.uint8)
    images = np.ascontiguousarray((levels.transpose(0, 3, 1, 2).astype(np.float32) / 255 - 0.5) / 0.5)
    assert bisect_artifact(path, two_blocks, images, precision="fp32", feed=lambda images: levels).first is None
    onnx.save(in_pixels(onnx.load(exported), normalise=False), path)
    wrong = bisect_artifact(path, two_blocks, images, precision="fp32", feed=lambda images: levels).first
    assert wrong is not None
    assert wrong.layer == "patch embedding"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_layer_of_a_plain_vit_is_compared(plain: PlainFile, precision: str, tmp_path: Path) -> None:
    pooled_before = plain.model.architecture.fc_norm or plain.model.architecture.global_pool == "token"
    last = "block 1 MLP and pooling" if pooled_before else "block 1 MLP"
    faithful = bisect_artifact(planted(plain.path, tmp_path, precision, nothing), plain.model, FEW, precision=precision)
    assert [layer.layer for layer in faithful.layers] == [name if name != "block 1 MLP" else last for name in LAYERS]
    assert faithful.first is None, faithful.summary
    faults = [*FAULTS[:3], (wrong_bias, last), (wrong_norm, "final norm"), (wrong_head, "head")]
    if plain.model.architecture.qk_norm:
        faults.append((wrong_key_norm, "block 1 attention"))
    for fault, layer in faults:
        path = planted(plain.path, tmp_path, precision, fault)
        found = bisect_artifact(path, plain.model, FEW, precision=precision)
        assert found.first is not None, layer
        assert found.first.layer == layer


def test_every_layer_of_a_plain_vits_weights_is_compared(plain: PlainFile, tmp_path: Path) -> None:
    faulty = copy.deepcopy(plain.model)
    save_model(tmp_path / "m.safetensors", faulty)
    assert bisect_artifact(tmp_path / "m.safetensors", plain.model, FEW, precision="fp32").first is None
    with torch.no_grad():
        faulty.norm.bias.neg_()
    save_model(tmp_path / "m.safetensors", faulty)
    found = bisect_artifact(tmp_path / "m.safetensors", plain.model, FEW, precision="fp32")
    assert found.first is not None
    assert found.first.layer == "final norm"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_between_two_onnx_files_the_first_tensor_is_named(exported: Path, precision: str, tmp_path: Path) -> None:
    found = bisect_onnx(planted(exported, tmp_path, precision, wrong_bias), exported, FEW, precision=precision)
    assert found.first is not None
    proto = onnx.load(exported)
    fc1 = [node for node in proto.graph.node if any(name.endswith("blocks.1.fc1.weight") for name in node.input)]
    assert found.first.tensor == fc1[0].output[0], found.summary
    assert found.first.before < found.first.after / 4


def test_names_that_were_changed_are_matched_by_their_place(exported: Path, tmp_path: Path) -> None:
    proto = onnx.load(exported)
    wrong_bias(proto)
    outputs = {value.name for value in proto.graph.output}
    names = {name: f"other.{number}" for number, node in enumerate(proto.graph.node) for name in node.output if name not in outputs}
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    proto.graph.ClearField("value_info")
    onnx.save(proto, tmp_path / "renamed.onnx")
    found = bisect_onnx(tmp_path / "renamed.onnx", exported, FEW, precision="fp32")
    fc1 = [node for node in proto.graph.node if any(name.endswith("blocks.1.fc1.weight") for name in node.input)]
    assert found.first is not None
    assert found.first.tensor == fc1[0].output[0]


def test_a_graph_of_another_depth_is_refused(exported: Path) -> None:
    one_block = extract(random_supernet(), Subnet(24, (2,), (3.0,)))
    with pytest.raises(BuildError, match=r"the graph has 5 LayerNormalization nodes and the static ViT has 3"):
        bisect_artifact(exported, one_block, FEW, precision="fp32")


def test_a_graph_of_another_width_is_refused(exported: Path) -> None:
    narrow = extract(random_supernet(), Subnet(16, (2, 2), (3.0, 2.0)))
    with pytest.raises(BuildError, match=r"after patch embedding is \(68, 24\), not \(4, 17, 16\)"):
        bisect_artifact(exported, narrow, FEW, precision="fp32")


def test_other_kinds_of_files_are_refused(two_blocks: VisionTransformer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.onnx and \.safetensors files only"):
        bisect_artifact(tmp_path / "x.plan", two_blocks, FEW, precision="fp32")
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"x\.onnx: not a readable \.onnx file"):
        bisect_artifact(tmp_path / "x.onnx", two_blocks, FEW, precision="fp32")


def overflowing() -> VisionTransformer:
    """Computes in fp32 what any network does; in fp16 what the first MLP's hidden layer holds is out of range."""
    model = extract(random_supernet(), TWO_BLOCKS).eval()
    with torch.no_grad():
        model.blocks[0].fc1.weight *= 5e4
        model.blocks[0].fc1.bias *= 5e4
        model.blocks[0].fc2.weight /= 5e4
    return model


def test_an_overflow_that_the_cpu_hides_is_found(tmp_path: Path) -> None:
    model = overflowing()
    export_onnx(model, tmp_path / "fp32.onnx")
    in_precision(tmp_path / "fp32.onnx", tmp_path / "fp16.onnx", "fp16", FEW)
    with torch.no_grad():
        hidden: Any = model.blocks[0]
        tokens = model.patch_embed(torch.from_numpy(FEW)).flatten(2).transpose(1, 2)
        x = torch.cat([model.cls_token.expand(4, -1, -1), tokens], dim=1) + model.pos_embed
        x = x + hidden.attn(hidden.norm1(x))
        assert hidden.fc1(hidden.norm2(x)).abs().max() > 65504
    # This is why the logits don't suffice: here they are finite and right.
    with open_session(tmp_path / "fp16.onnx", threads=1) as session:
        assert np.isfinite(session.run(FEW)).all()
    with pytest.raises(ParityError, match=r"^net: the tensor \S+ \(Gemm\) overflows fp16, which ends at 65504, on 4 images; gone$"):
        check_half_range(tmp_path / "fp16.onnx", FEW, subject="net", consequence="gone")
    assert half_range(tmp_path / "fp16.onnx", FEW).to_dict()["largest"] is None


def test_the_largest_number_of_a_healthy_graph(exported: Path, tmp_path: Path) -> None:
    path = planted(exported, tmp_path, "fp16", nothing)
    found = check_half_range(path, IMAGES[:6], subject="net")
    tensors = OnnxTensors(path)
    halves = [name for node in tensors.nodes for name in node.output]
    values = [value for value in tensors.read(halves, IMAGES[:6]).values() if value.dtype == np.float16]
    assert found.largest == max(float(np.abs(value.astype(float)).max()) for value in values)
    assert (found.tensors, found.images) == (len(values), 6)
    assert half_range(exported, FEW).tensors == 0
