"""OpenVINO against ONNX Runtime on the same exported files; without the package, only that its absence is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from growtas.errors import BuildError, CheckpointError, DeviceError, MissingExtra, OutputError, UsageError
from growtas.export.benchmark import stopwatch as turns
from growtas.export.benchmark import targets
from growtas.export.graph.exporter import export_onnx
from growtas.export.open import open_session
from growtas.export.quantization.convert import convert
from growtas.export.runtimes import openvino
from growtas.export.runtimes.base import is_installed
from growtas.export.runtimes.onnxruntime import OnnxRuntimeSession
from growtas.export.runtimes.openvino import OpenVINOSession, write_ir
from growtas.export.verification.images import noise
from growtas.nn.architecture import Architecture
from growtas.nn.vit import random_network
from growtas.resources import available_threads
from growtas.subnet import Subnet
from tests.export_helpers import SUBNET, TINY, PlainFile
from tests.reference import plain_space

needs_openvino = pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")
SHAPE = (3, 16, 16)


@pytest.fixture(scope="module")
def ir(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as an IR; not to be changed."""
    path = tmp_path_factory.mktemp("ir") / "tiny.xml"
    write_ir(onnx_file, path)
    return path


def _relative(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


def _write_half_ir(onnx_file: Path, xml: Path) -> None:
    """Writes an IR with its weights as fp16, as other tools do."""
    import openvino as ov

    save = ov.save_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ov, "save_model", lambda model, path, **options: save(model, path, compress_to_fp16=True))
        write_ir(onnx_file, xml)


def _without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "is_installed", lambda name: False)


def test_a_missing_package_is_named_with_the_install_line(onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_openvino(monkeypatch)
    with pytest.raises(MissingExtra, match=r"needs the package openvino.*pip install 'growtas\[openvino\]'"):
        open_session(onnx_file, runtime="openvino")
    with pytest.raises(MissingExtra, match=r"pip install 'growtas\[openvino\]'"):
        open_session(tmp_path / "any.xml")
    with pytest.raises(MissingExtra, match="writing an OpenVINO IR needs the package openvino"):
        write_ir(onnx_file, tmp_path / "any.xml")
    assert list(tmp_path.iterdir()) == []


@needs_openvino
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("form", ["onnx", "bytes", "ir"])
def test_the_logits_are_those_of_onnx_runtime(onnx_file: Path, ir: Path, form: str, threads: int) -> None:
    source: Path | bytes = {"onnx": onnx_file, "bytes": onnx_file.read_bytes(), "ir": ir}[form]
    with OnnxRuntimeSession(onnx_file, threads=1) as other, OpenVINOSession(source, threads=threads) as session:
        assert session.image_shape == other.image_shape == SHAPE
        # Twice the same batch with another between: what a run leaves in the request must not show in the next.
        for batch in (1, 5, 1):
            images = noise(batch, SHAPE) * 3
            assert _relative(session.run(images), other.run(images)) < 1e-4


@needs_openvino
def test_an_ir_of_a_plain_vit_gives_its_logits(plain: PlainFile, tmp_path: Path) -> None:
    write_ir(plain.path, tmp_path / "plain.xml")
    with OnnxRuntimeSession(plain.path, threads=1) as other, OpenVINOSession(tmp_path / "plain.xml", threads=1) as session:
        for batch in (1, 3):
            images = noise(batch, SHAPE)
            assert _relative(session.run(images), other.run(images)) < 1e-4


@needs_openvino
def test_an_int8_ir_with_matrices_of_usual_sizes_is_loaded(tmp_path: Path) -> None:
    # What OpenVINO computes of such matrices when it loads the IR is no larger than they are.
    space = plain_space(TINY, "class token").replace(embed_dim=(64,), max_embed_dim=64, head_dim=16)
    export_onnx(random_network(Architecture.of(space, Subnet(64, (2,), (3.0,)))), tmp_path / "fp32.onnx")
    convert(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", "int8", calibration=noise(8, SHAPE))
    write_ir(tmp_path / "int8.onnx", tmp_path / "int8.xml")
    with OpenVINOSession(tmp_path / "fp32.onnx", threads=1) as other, OpenVINOSession(tmp_path / "int8.xml", threads=1) as session:
        assert _relative(session.run(noise(3, SHAPE)), other.run(noise(3, SHAPE))) < 0.2


@needs_openvino
def test_a_result_outlives_the_next_run(onnx_file: Path) -> None:
    with OpenVINOSession(onnx_file, threads=1) as session:
        first = session.run(noise(2, SHAPE))
        before = first.copy()
        session.run(-noise(2, SHAPE))
        np.testing.assert_array_equal(first, before)


@needs_openvino
def test_images_in_another_layout_and_type_are_read_right(onnx_file: Path) -> None:
    images = noise(3, SHAPE)
    turned = np.asfortranarray(images.astype(np.float64))
    with OpenVINOSession(onnx_file, threads=1) as session:
        np.testing.assert_array_equal(session.run(turned), session.run(images))  # type: ignore[arg-type]


@needs_openvino
def test_the_suffix_or_the_name_chooses_openvino(onnx_file: Path, ir: Path) -> None:
    from importlib.metadata import version

    with open_session(onnx_file, runtime="openvino", threads=1) as by_name, open_session(ir, threads=1) as by_suffix:
        for session in (by_name, by_suffix):
            assert isinstance(session, OpenVINOSession)
            assert session.info.runtime == "openvino"
            assert session.info.device == "cpu"
            assert session.info.threads == 1
            assert session.info.version == version("openvino")
    with open_session(onnx_file, runtime="onnxruntime", threads=1) as session:
        assert isinstance(session, OnnxRuntimeSession)


@needs_openvino
def test_threads_are_what_the_runtime_says_that_it_uses(onnx_file: Path) -> None:
    with OpenVINOSession(onnx_file, threads=1) as one, OpenVINOSession(onnx_file) as default:
        assert one.info.threads == 1
        assert default.info.threads == available_threads()


@needs_openvino
def test_fp32_one_stream_for_latency_and_no_pinning(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino as ov

    # What was asked for, and not only what holds here: a CPU without bf16 computes in fp32 whether asked to or not.
    asked: list[dict[str, object]] = []
    compile_model = ov.Core.compile_model

    def spy(self: Any, model: Any, device: str, settings: dict[str, object]) -> Any:
        asked.append({"device": device, **settings})
        compiled = compile_model(self, model, device, settings)
        assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
        assert (compiled.get_property("NUM_STREAMS"), compiled.get_property("ENABLE_CPU_PINNING")) == (1, False)
        return compiled

    monkeypatch.setattr(ov.Core, "compile_model", spy)
    with OpenVINOSession(onnx_file, threads=2):
        pass
    expected = {
        "device": "CPU",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": 2,
        "NUM_STREAMS": 1,
        "ENABLE_HYPER_THREADING": True,
        "ENABLE_CPU_PINNING": False,
    }
    assert asked == [expected]


@needs_openvino
def test_a_timer_times_what_was_set(onnx_file: Path) -> None:
    with OpenVINOSession(onnx_file, threads=1) as session:
        one, many = session.timer(noise(1, SHAPE)), session.timer(noise(512, SHAPE))
        for timer in (one, many):
            timer()
        assert 0 < min(one() for _ in range(5)) < min(many() for _ in range(5))


@needs_openvino
def test_a_timer_runs_its_images_and_nothing_else(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino as ov

    created = []
    create = ov.CompiledModel.create_infer_request

    def spy(self: Any) -> Any:
        created.append(create(self))
        return created[-1]

    monkeypatch.setattr(ov.CompiledModel, "create_infer_request", spy)
    with OpenVINOSession(onnx_file, threads=1) as session:
        images = noise(2, SHAPE)
        expected = session.run(images)
        created.clear()
        timer = session.timer(images)
        # The timer keeps what it was given: neither the caller's array nor another run may change it.
        images[:] = 0
        session.run(images)
        timer()
        np.testing.assert_array_equal(created[0].get_output_tensor().data, expected)


def test_a_profile_asks_for_the_package_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "is_installed", lambda name: name != "openvino")
    with pytest.raises(DeviceError, match=r"--runtime openvino needs the package openvino.*pip install 'growtas\[openvino\]'"):
        targets.check_runtime("openvino", "fp32")
    monkeypatch.setattr(targets, "is_installed", lambda name: True)
    targets.check_runtime("openvino", "fp32")
    with pytest.raises(DeviceError, match="--precision is 'fp16'"):
        targets.check_runtime("openvino", "fp16")


@needs_openvino
def test_subnets_are_timed_in_openvino() -> None:
    subnets = [SUBNET, Subnet(16, (1, 2), (2.0, 3.0))]
    timed, other = (
        turns.ArchitectureTurns(TINY, subnets, runtime=runtime, batch=2, threads=1, rounds=3, seconds=0.001)
        for runtime in ("openvino", "onnxruntime")
    )
    assert (timed.info(SUBNET).runtime, timed.info(SUBNET).threads) == ("openvino", 1)
    medians = np.array([[block.median_ms for block in blocks] for blocks in timed(subnets)])
    assert medians.shape == (2, 3)
    assert (medians > 0).all()
    images = noise(2, SHAPE)
    for subnet in subnets:
        with timed.session(subnet) as session, other.session(subnet) as reference:
            assert _relative(session.run(images), reference.run(images)) < 1e-4


@needs_openvino
def test_leaving_the_session_frees_the_model(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    import openvino as ov

    models: list[weakref.ref[Any]] = []
    compile_model = ov.Core.compile_model

    def spy(self: Any, *arguments: Any) -> Any:
        compiled = compile_model(self, *arguments)
        models.append(weakref.ref(compiled))
        return compiled

    monkeypatch.setattr(ov.Core, "compile_model", spy)
    with OpenVINOSession(onnx_file, threads=1) as session:
        session.run(noise(1, SHAPE))
        assert models[0]() is not None
    assert models[0]() is None


@needs_openvino
@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a"])
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_broken_file_is_one_sentence(tmp_path: Path, content: bytes, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    match = rf"broken\{suffix}: (OpenVINO can't load it|not a readable \{suffix} file) \("
    with pytest.raises(CheckpointError, match=match) as caught:
        open_session(path, runtime="openvino")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@needs_openvino
def test_absent_and_cut_files_are_one_sentence(onnx_file: Path, ir: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no\.onnx: there is no such file"):
        OpenVINOSession(tmp_path / "no.onnx")
    with pytest.raises(CheckpointError, match="there is no such file"):
        OpenVINOSession(tmp_path)
    with pytest.raises(CheckpointError, match=r"^the model: OpenVINO can't load it"):
        OpenVINOSession(b"abc")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(onnx_file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cut\.onnx: not a readable \.onnx file"):
        OpenVINOSession(cut)
    alone = tmp_path / "alone.xml"
    shutil.copy(ir, alone)
    with pytest.raises(CheckpointError, match=r"alone\.xml: OpenVINO can't load it \(.*bin file"):
        OpenVINOSession(alone)
    alone.with_suffix(".bin").write_bytes(ir.with_suffix(".bin").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"alone\.xml: not a readable \.xml file \(its constant .* reaches beyond the end"):
        OpenVINOSession(alone)


@needs_openvino
def test_an_operator_that_openvino_lacks_is_named(onnx_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    proto = onnx.load(onnx_file)
    next(node for node in proto.graph.node if node.op_type == "Gelu").op_type = "NoSuchOperator"
    onnx.save(proto, path)
    with pytest.raises(CheckpointError, match=r"odd\.onnx: OpenVINO can't load it \(.*NoSuchOperator"):
        OpenVINOSession(path)


@needs_openvino
@pytest.mark.parametrize(
    ("shape", "inputs", "match"),
    [
        (("batch", 3), 1, r"its input is \[\?,3\], not \(batch, channels, height, width\)"),
        (("batch", 3, "height", 16), 1, r"its input is \[\?,3,\?,16\], not"),
        (("batch", 3, 16, 16), 2, "2 inputs and 1 outputs, not images and logits"),
    ],
)
def test_a_model_of_something_else_is_refused(tmp_path: Path, shape: tuple[Any, ...], inputs: int, match: str) -> None:
    values = [helper.make_tensor_value_info(f"in{index}", TensorProto.FLOAT, shape) for index in range(inputs)]
    node = helper.make_node("Sum", [value.name for value in values], ["out"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)
    model = helper.make_model(
        helper.make_graph([node], "g", values, [out]), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match=match):
        OpenVINOSession(tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match=match):
        write_ir(tmp_path / "other.onnx", tmp_path / "other.xml")


@needs_openvino
def test_an_ir_is_two_files_with_the_same_bytes_each_time(onnx_file: Path, ir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    write_ir(str(onnx_file), str(folder / "tiny.xml"))
    assert sorted(path.name for path in folder.iterdir()) == ["tiny.bin", "tiny.xml"]
    for suffix in (".xml", ".bin"):
        assert (folder / "tiny.xml").with_suffix(suffix).read_bytes() == ir.with_suffix(suffix).read_bytes()
    # Another process, as at the next export, after other work there.
    code = (
        "import sys; from growtas.export.runtimes.openvino import write_ir; a, b, c = sys.argv[1:]; write_ir(a, b); write_ir(a, c)"
    )
    again = [tmp_path / name / "tiny.xml" for name in ("a", "b")]
    subprocess.run([sys.executable, "-c", code, str(onnx_file), *map(str, again)], check=True, timeout=100)
    for path in again:
        for suffix in (".xml", ".bin"):
            assert path.with_suffix(suffix).read_bytes() == ir.with_suffix(suffix).read_bytes()


@needs_openvino
def test_weights_are_fp32_and_others_can_be_read(onnx_file: Path, ir: Path, tmp_path: Path) -> None:
    weights = [tensor for tensor in onnx.load(onnx_file).graph.initializer if tensor.data_type == TensorProto.FLOAT]
    in_fp32 = sum(int(np.prod(tensor.dims)) * 4 for tensor in weights)
    half = tmp_path / "half.xml"
    _write_half_ir(onnx_file, half)
    full, halved = (path.with_suffix(".bin").stat().st_size for path in (ir, half))
    assert in_fp32 * 0.9 < full < in_fp32 * 1.2
    assert halved < full * 0.7
    images = noise(4, SHAPE)
    with OpenVINOSession(ir, threads=1) as exact, OpenVINOSession(half, threads=1) as rounded:
        assert 1e-6 < _relative(rounded.run(images), exact.run(images)) < 1e-2


@needs_openvino
def test_writing_replaces_an_older_pair_and_reading_does_not_mind(onnx_file: Path, tmp_path: Path) -> None:
    xml = tmp_path / "m.xml"
    xml.write_text("old")
    xml.with_suffix(".bin").write_text("old")
    write_ir(onnx_file, xml)
    images = noise(2, SHAPE)
    with OpenVINOSession(xml, threads=1) as session:
        first = session.run(images)
        _write_half_ir(onnx_file, xml)
        np.testing.assert_array_equal(session.run(images), first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.bin", "m.xml"]


@needs_openvino
def test_a_failed_writing_leaves_what_was_there(onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xml = tmp_path / "m.xml"
    write_ir(onnx_file, xml)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def left() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}

    with pytest.raises(UsageError, match=r"m\.ir: an OpenVINO IR is a file that ends in \.xml"):
        write_ir(onnx_file, tmp_path / "m.ir")
    with pytest.raises(CheckpointError, match="there is no such file"):
        write_ir(tmp_path / "no.onnx", xml)
    import openvino as ov

    def full(model: Any, path: str, **options: Any) -> None:
        Path(path).write_text("half of it")
        raise RuntimeError("Exception from src/somewhere.cpp:1:\nno space left\n")

    with monkeypatch.context() as patch:
        patch.setattr(ov, "save_model", full)
        with pytest.raises(BuildError, match=r"m\.xml: OpenVINO can't write the IR \(no space left\)"):
            write_ir(onnx_file, xml)
    assert left() == before
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "n.bin").mkdir()
    with pytest.raises(OutputError, match=r"n\.bin: can't be written"):
        write_ir(onnx_file, tmp_path / "n.xml")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="the output folder can't be written"):
        write_ir(onnx_file, tmp_path / "file" / "m.xml")
    assert left() == {**before, "file": b""}


@needs_openvino
def test_a_crash_between_the_two_files_leaves_no_mixed_pair(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xml = tmp_path / "m.xml"
    write_ir(onnx_file, xml)
    replace, calls = os.replace, []

    def crash(source: Any, target: Any) -> None:
        calls.append(Path(target).name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        _write_half_ir(onnx_file, xml)
    assert calls == ["m.bin", "m.xml"]
    assert [path.name for path in tmp_path.iterdir()] == ["m.bin"]


@needs_openvino
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_signals_are_handled_after_sessions_closed_in_any_order(onnx_file: Path) -> None:
    # A process of its own: where it goes wrong, the process is gone.
    code = (
        "import os, signal, sys; from growtas.export.runtimes.openvino import OpenVINOSession\n"
        "handled = []\n"
        "signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))\n"
        "first, second = (OpenVINOSession(sys.argv[1], threads=1) for _ in range(2))\n"
        "for session in (first, second):\n"
        "    session.__exit__(None, None, None)\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "assert len(handled) == 2\n"
    )
    assert subprocess.run([sys.executable, "-X", "faulthandler", "-c", code, str(onnx_file)], timeout=100).returncode == 0
