from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from growtas.errors import CheckpointError, DataError, DeviceError, UsageError
from growtas.export.artifact import write_manifest
from growtas.export.graph.edit import describe, load_model, save_model
from growtas.export.runtimes.base import is_installed
from growtas.export.serving import predictor as module
from growtas.export.serving.image_files import find_images
from growtas.export.serving.predictor import Predictor, newest_artifact
from tests.fake_runtime import FakeSession
from tests.image_writers import write_png16
from tests.progress_recorder import Recorder
from tests.unit.export.serving.helpers import CLASSES, MAX_BATCH, NAMES, RECORD, SHAPE, SIZE, artifact, as_ir, images, reference

needs_openvino = pytest.mark.skipif(not is_installed("openvino"), reason="openvino is not installed")
GREEN, RED = (20, 200, 40), (200, 20, 40)


def noise(seed: int = 0, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def by_hand(image: Image.Image) -> np.ndarray:
    """What the record says of an image that needs no resizing: a 255th, minus mean, over std, channels first."""
    values = np.asarray(image.convert("RGB"), np.float64) / 255
    return ((values - RECORD["mean"]) / RECORD["std"]).transpose(2, 0, 1)


def test_images_are_prepared_as_the_manifest_says_and_classes_named(tmp_path: Path) -> None:
    images = [noise(seed) for seed in range(MAX_BATCH + 3)]
    with Predictor(artifact(tmp_path), threads=1) as predictor:
        prepared = np.stack([predictor.prepare(image) for image in images])
        want = np.stack([by_hand(image) for image in images])
        assert prepared.dtype == np.float32
        np.testing.assert_allclose(prepared, want, atol=1e-6)
        logits = predictor.run(prepared)
        np.testing.assert_allclose(logits, reference(want), atol=1e-5)
        top = predictor.top(logits[0], 3)
    exact = reference(want)[0]
    order = np.argsort(-exact)[:3]
    assert [score.index for score in top] == order.tolist()
    assert [score.label for score in top] == [NAMES[index] for index in order]
    np.testing.assert_allclose([score.probability for score in top], (np.exp(exact) / np.exp(exact).sum())[order], rtol=1e-4)


def test_pixels_go_in_as_they_are_where_the_graph_normalises(tmp_path: Path) -> None:
    image = noise(3)
    with Predictor(artifact(tmp_path, pixels=True), threads=1) as predictor:
        prepared = predictor.prepare(image)
        assert prepared.dtype == np.uint8
        np.testing.assert_array_equal(prepared, np.asarray(image))
        want = reference(np.asarray(image, np.float64).transpose(2, 0, 1)[None])
        np.testing.assert_allclose(predictor.run(prepared[None]), want, rtol=1e-5, atol=1e-3)


def test_a_larger_image_is_resized_on_its_short_side_and_cropped(tmp_path: Path) -> None:
    """Left and right of the middle square there is red, which must not be seen."""
    wide = Image.new("RGB", (96, 32), RED)
    wide.paste(GREEN, (32, 0, 64, 32))
    with Predictor(artifact(tmp_path, pixels=True), threads=1) as predictor:
        inner = predictor.prepare(wide)[:, 2:-2]
    np.testing.assert_array_equal(inner, np.broadcast_to(GREEN, inner.shape))


def test_a_graph_that_resizes_gets_the_whole_image(tmp_path: Path) -> None:
    entry = {"name": "pixels", "dtype": "uint8", "shape": ["batch", "height", "width", 3], "batch": {"max": MAX_BATCH}}
    with Predictor(artifact(tmp_path, pixels=True, input=entry), threads=1) as predictor:
        image = noise(1, (13, 7))
        np.testing.assert_array_equal(predictor.prepare(image), np.asarray(image))


def test_equal_logits_name_the_first_class_first(tmp_path: Path) -> None:
    with Predictor(artifact(tmp_path, class_names=None), threads=1) as predictor:
        top = predictor.top(np.array([1, 5, 2, 5, 0], np.float32), CLASSES)
    assert [score.index for score in top] == [1, 3, 2, 0, 4]
    assert [score.label for score in top] == ["1", "3", "2", "0", "4"]


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    made = artifact(tmp_path)
    with pytest.raises(UsageError, match="legal are files that end in"):
        Predictor(tmp_path / "net.png")
    with pytest.raises(CheckpointError, match="no such artifact"):
        Predictor(tmp_path / "other.onnx")
    whole = made.read_bytes()
    made.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        Predictor(made)
    made.write_bytes(whole)
    made.with_name("net.onnx.json").unlink()
    with pytest.raises(CheckpointError, match="no manifest net.onnx.json beside it"):
        Predictor(made)
    with Predictor(artifact(tmp_path, preprocess=None), threads=1) as predictor, pytest.raises(CheckpointError, match="no record"):
        predictor.prepare(noise())


def test_the_newest_onnx_file_answers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no artifact here; make one with `growtas export`"):
        newest_artifact(tmp_path)
    old, new = artifact(tmp_path, name="b"), artifact(tmp_path, name="a")
    os.utime(old, (1, 1))
    (tmp_path / "z.onnx").write_bytes(b"without a manifest")
    for suffix in (".safetensors", ".plan"):
        (tmp_path / f"newer{suffix}").write_bytes(b"")
        write_manifest(tmp_path / f"newer{suffix}", {})
    assert newest_artifact(tmp_path) == new
    for path in (old, new):
        path.unlink()
    assert newest_artifact(tmp_path) == tmp_path / "newer.safetensors"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_an_image_of_every_mode_of_8_bits_is_prepared(tmp_path: Path, mode: str) -> None:
    grey = np.tile(np.arange(SIZE, dtype=np.uint8) * 30, (SIZE, 1))
    image = Image.new(mode, (SIZE, SIZE)) if mode in ("PA", "LAB", "HSV", "RGBX") else Image.fromarray(grey).convert(mode)
    with Predictor(artifact(tmp_path, pixels=True), threads=1) as predictor:
        pixels = predictor.prepare(image)
    assert pixels.shape == (SIZE, SIZE, 3)
    if mode in ("L", "LA", "RGB", "RGBA", "P"):
        np.testing.assert_array_equal(pixels[..., 0], grey)


def test_an_image_that_is_not_loaded_yet_is_prepared_by_the_records_rules(tmp_path: Path) -> None:
    """A photograph stored on its side: what is stored left is shown at the top (orientation 6)."""
    image = Image.new("RGB", (SIZE, SIZE), GREEN)
    image.paste(RED, (0, 0, SIZE // 2, SIZE))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    stored = np.asarray(image)
    for decode, want in (({"version": 1, "pixel_range": None}, stored.swapaxes(0, 1)), (None, stored)):
        made = artifact(tmp_path, pixels=True, preprocess={**RECORD, "decode": decode})
        with Predictor(made, threads=1) as predictor, Image.open(tmp_path / "turned.png") as opened:
            np.testing.assert_array_equal(predictor.prepare(opened), want)


def test_an_image_of_16_bit_colours_that_is_not_loaded_yet(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (SIZE, SIZE, 3), np.uint16)
    write_png16(tmp_path / "deep.png", values)
    for declared, top in (([0, 4095], 4095), (None, 65535)):
        made = artifact(tmp_path, pixels=True, preprocess={**RECORD, "decode": {"version": 1, "pixel_range": declared}})
        with Predictor(made, threads=1) as predictor, Image.open(tmp_path / "deep.png") as opened:
            np.testing.assert_array_equal(predictor.prepare(opened), np.rint(values * (255 / top)))


def test_names_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.JPG", "in/c.png", "notes.txt", "odd[1].png", "empty/notes.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"")
    assert [str(path) for path in find_images(["b.png", "nothing.png", "notes.txt"])] == ["b.png", "nothing.png", "notes.txt"]
    assert [str(path) for path in find_images(["."])] == ["a.JPG", "b.png", "in/c.png", "odd[1].png"]
    assert [str(path) for path in find_images(["*.png", "odd[1].png"])] == ["b.png", "odd[1].png", "odd[1].png"]
    assert [str(path) for path in find_images(["**/*.png"])] == ["b.png", "in/c.png", "odd[1].png"]
    with pytest.raises(DataError, match=r"empty: no images in this folder; .* doesn't decode \(.txt 1\)"):
        find_images(["empty"])
    with pytest.raises(DataError, match=r"\*.gif: no file matches"):
        find_images(["*.gif"])


def test_a_folder_means_what_pillow_can_decode_and_nothing_hidden(tmp_path: Path) -> None:
    """Pillow writes .pdf and .palm without reading them, and knows .h5 and .mpg without decoding them."""
    readable = ["a.png", "b.GIF", "c.jfif", "in/d.webp"]
    others = ["e.pdf", "f.h5", "g.mpg", "h.palm", "i.txt", "j", "in/k.emf"]
    hidden = [".l.png", "._a.png", ".thumbnails/m.png", "__MACOSX/n.png"]
    for name in (*readable, *others, *hidden):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    progress = Recorder()
    assert find_images([tmp_path], progress) == [tmp_path / name for name in readable]
    (note,) = progress.notes
    assert note.startswith(f"{tmp_path}: 7 files are left out")
    assert ".pdf 1" in note


@pytest.mark.parametrize(
    "url", ["http://a.org/b.png", "https://a.org/*.png", "file:///b.png", "s3://a/b.png", "file:/b.png", "data:image/png;base64,x"]
)
def test_urls_are_refused_as_urls(url: str) -> None:
    with pytest.raises(DataError, match="this is a URL, and only local files are read"):
        find_images([url])


def test_an_empty_name_is_not_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="the name of an image is empty"):
        find_images([""])
    assert find_images(["."]) == [Path("a.png")]


@pytest.mark.parametrize("size", [(3000, 2), (2, 3000), (3001, 3), (1, 5000)])
def test_a_graph_that_resizes_gets_the_middle_of_a_very_long_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """The whole of it, resized, would be some thousand times longer than what is cut out of it."""
    entry = {"name": "pixels", "dtype": "uint8", "shape": ["batch", "height", "width", 3], "batch": {"max": MAX_BATCH}}
    seen = []

    def middle(images: np.ndarray) -> np.ndarray:
        seen.append(images)
        return np.zeros((len(images), CLASSES), np.float32)

    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    monkeypatch.setattr(module, "open_artifact", lambda artifact, threads: FakeSession(middle, image_shape=SHAPE))
    with Predictor(artifact(tmp_path, pixels=True, input=entry), threads=1) as predictor:
        predictor.run(pixels)
    (given,) = seen
    short, long = sorted(given.shape[1:3])
    assert (short, long % short, long <= 33 * short) == (min(size), 0, True)
    before, after = ((whole - part) // 2 for whole, part in zip(pixels.shape[1:3], given.shape[1:3], strict=True))
    np.testing.assert_array_equal(given, pixels[:, before : before + given.shape[1], after : after + given.shape[2]])


@pytest.mark.parametrize("any_size", [False, True])
def test_answering_takes_no_torch(tmp_path: Path, any_size: bool) -> None:
    """A server of an ONNX file would need seconds more to start, and ten times the memory."""
    entry = {"name": "pixels", "dtype": "uint8", "shape": ["batch", "height", "width", 3], "batch": {"max": MAX_BATCH}}
    path = artifact(tmp_path, pixels=True, input=entry) if any_size else artifact(tmp_path)
    code = (
        "import sys; from growtas.export.serving.predictor import Predictor\n"
        "with Predictor(sys.argv[1], threads=1) as predictor: predictor.warm_up(1)\n"
        "sys.exit([name for name in ('torch', 'timm') if name in sys.modules] or 0)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=100)


MORE: tuple[dict[str, Any], ...] = ({}, {"softmax": True}, {"top_k": 2}, {"softmax": True, "top_k": CLASSES})


def directly(path: Path, given: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": given}), strict=True))


@pytest.mark.parametrize("more", MORE)
@pytest.mark.parametrize("suffix", [".onnx", pytest.param(".xml", marks=needs_openvino)])
def test_every_output_is_the_runtimes_own(tmp_path: Path, more: dict[str, Any], suffix: str) -> None:
    path = artifact(tmp_path, **more)
    given = images(MAX_BATCH)
    want = directly(path, given)
    if suffix == ".xml":
        path = as_ir(path)
    with Predictor(path, threads=1) as predictor:
        predictor.warm_up(MAX_BATCH)
        got = predictor.run_all(given)
        kept = {name: values.copy() for name, values in got.items()}
        signature = predictor.signature
        logits = predictor.run(given)
        # The last run: what it computes must not show in an earlier answer.
        predictor.run_all(-given)
    assert list(got) == list(want) == [output.name for output in signature.outputs]
    for output in signature.outputs:
        values = got[output.name]
        assert (values.dtype, values.shape) == (output.dtype, (MAX_BATCH, *output.shape))
        assert values.dtype == want[output.name].dtype
        np.testing.assert_allclose(values, want[output.name], atol=1e-5)
        np.testing.assert_array_equal(values, kept[output.name])
    np.testing.assert_array_equal(got["logits"], logits)
    np.testing.assert_allclose(logits, reference(given), atol=1e-5)
    if "top_classes" in got:
        best = np.argsort(-reference(given), axis=1)[:, : more["top_k"]]
        np.testing.assert_array_equal(got["top_classes"], best)


def test_an_image_alone_is_answered_as_it_is_among_others(tmp_path: Path) -> None:
    given = images(3)
    with Predictor(artifact(tmp_path, softmax=True, top_k=3), threads=1) as predictor:
        together = predictor.run_all(given)
        for place in range(3):
            for name, values in predictor.run_all(given[place : place + 1]).items():
                np.testing.assert_allclose(values[0], together[name][place], atol=1e-6)


def test_a_runtime_of_logits_alone_is_served_with_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = artifact(tmp_path, softmax=True)
    monkeypatch.setattr(module, "open_artifact", lambda artifact, threads: FakeSession(reference, image_shape=SHAPE))
    with Predictor(path) as predictor:
        assert [output.name for output in predictor.signature.outputs] == ["logits"]
        predictor.warm_up(2)
        got = predictor.run_all(images(2))
    assert list(got) == ["logits"]
    np.testing.assert_allclose(got["logits"], reference(images(2)), rtol=1e-6)


@pytest.mark.parametrize(
    ("made", "said", "match"),
    [
        ({}, {"outputs": ["logits", "probabilities"], "top_k": None}, "its manifest lists an output probabilities; it has logits"),
        (
            {"softmax": True},
            {"outputs": ["logits", "probabilities", "top_scores"], "top_k": 2},
            "an output top_scores; it has logits and probabilities",
        ),
        (
            {"top_k": 3},
            {"outputs": ["logits", "top_scores", "top_classes"], "top_k": 2},
            r"its output top_scores has the shape \[2, 3\], but its manifest says \[2, 2\]",
        ),
    ],
)
def test_a_file_that_is_not_what_its_manifest_says_is_found_by_the_first_run(
    tmp_path: Path, made: dict[str, Any], said: dict[str, Any], match: str
) -> None:
    with (
        Predictor(artifact(tmp_path, **made, postprocess=said), threads=1) as predictor,
        pytest.raises(CheckpointError, match=match) as error,
    ):
        predictor.warm_up(2)
    assert "\n" not in str(error.value)


def test_another_number_of_classes_than_the_manifests_is_found_by_the_first_run(tmp_path: Path) -> None:
    with Predictor(artifact(tmp_path), threads=1) as predictor:
        wrong = dataclasses.replace(predictor.signature.outputs[0], shape=(CLASSES + 1,))
        predictor.signature = dataclasses.replace(predictor.signature, outputs=(wrong,))
        with pytest.raises(CheckpointError, match=r"its output logits has the shape \[1, 5\], but its manifest says \[1, 6\]"):
            predictor.warm_up(1)


def test_what_answers_by_default_was_made_for_this_machine(tmp_path: Path) -> None:
    plain = artifact(tmp_path, name="net")
    time = plain.stat().st_mtime
    # Newer ones: for a plan's GPU, for a runtime without kernels, and for CPUs.
    for later, (name, record) in enumerate(
        {
            "net.fp16": {"precision": "fp16"},
            "net.int8-gpu": {"precision": "int8", "conversion": {"rest": "fp16"}},
            "net.bf16": {"precision": "bf16", "executed": False, "not_executed_because": "no kernels for bf16"},
        }.items(),
        start=1,
    ):
        os.utime(artifact(tmp_path, name=name, **record), (time + later, time + later))
    (tmp_path / "net.plan").write_bytes(b"plan")
    write_manifest(tmp_path / "net.plan", {"plan": {"runtime": "tensorrt", "targets": ["sm01"]}})
    assert newest_artifact(tmp_path) == plain
    int8 = artifact(tmp_path, name="net.int8", precision="int8", conversion={"rest": "fp32"})
    os.utime(int8, (time + 9, time + 9))
    assert newest_artifact(tmp_path) == int8
    for path in (plain, int8):
        path.unlink()
    assert newest_artifact(tmp_path).name == "net.int8-gpu.onnx"
    for name in ("net.fp16", "net.int8-gpu"):
        (tmp_path / f"{name}.onnx").unlink()
    with pytest.raises(UsageError, match=r"net\.bf16\.onnx can't run here: no kernels for bf16; net\.plan can't run here"):
        newest_artifact(tmp_path)


def test_a_file_that_can_not_run_answers_with_the_manifests_reason(tmp_path: Path) -> None:
    path = artifact(tmp_path)
    proto = onnx.load(path)
    proto.graph.node[-1].domain = "nowhere"
    proto.opset_import.add(domain="nowhere", version=1)
    onnx.save(proto, path)
    record = json.loads(path.with_name("net.onnx.json").read_text())
    del record["artifact"]
    write_manifest(path, {**record, "executed": False, "not_executed_because": "no machine has this operator"})
    with pytest.raises(DeviceError, match=r"net\.onnx: it can't run here: no machine has this operator"):
        Predictor(path)


@pytest.mark.parametrize("pixels", [False, True])
def test_a_bare_onnx_file_answers_by_its_own_metadata(tmp_path: Path, pixels: bool) -> None:
    path = artifact(tmp_path, pixels=pixels, softmax=True, top_k=2)
    model = load_model(path)
    describe(model, preprocess=RECORD, class_names=NAMES)
    save_model(model, path, "the graph")
    path.with_name("net.onnx.json").unlink()
    with Predictor(path, threads=1) as predictor:
        signature = predictor.signature
        assert signature.class_names == tuple(NAMES)
        assert signature.preprocess == RECORD
        assert [output.name for output in signature.outputs] == ["logits", "probabilities", "top_scores", "top_classes"]
        prepared = predictor.prepare(noise())[None]
        assert (prepared.dtype == np.uint8) == pixels
        answers = predictor.run_all(prepared)
    assert answers["top_classes"][0][0] == answers["logits"][0].argmax()


def test_a_renamed_artifact_is_found_by_its_hash(tmp_path: Path) -> None:
    path = artifact(tmp_path)
    renamed = path.rename(tmp_path / "model.onnx")
    with Predictor(renamed, threads=1) as predictor:
        assert predictor.signature.class_names == tuple(NAMES)
    renamed.write_bytes(renamed.read_bytes() + b" ")
    with pytest.raises(CheckpointError):
        Predictor(renamed)


@needs_openvino
def test_the_two_files_of_an_ir_may_be_renamed(tmp_path: Path) -> None:
    xml = as_ir(artifact(tmp_path))
    for suffix in (".xml", ".bin", ".xml.json"):
        xml.with_suffix(suffix).rename(tmp_path / f"model{suffix}")
    with Predictor(tmp_path / "model.xml", threads=1) as predictor:
        np.testing.assert_allclose(predictor.run(images(2)), reference(images(2)), rtol=1e-4, atol=1e-5)
    (tmp_path / "model.bin").write_bytes(b"\0" * (tmp_path / "model.bin").stat().st_size)
    with pytest.raises(CheckpointError, match=r"model\.bin is not the one"):
        Predictor(tmp_path / "model.xml")


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("mean", "grey", "has the mean grey, which must be a list of 3 numbers"),
        ("std", [0.5, 0.5, None], "which must be a list of 3 numbers"),
        ("image_size", "224", "image_size '224', which must be a whole number"),
        ("crop_pct", 0, "crop_pct 0, which must be a number from 0.1 to 1"),
        ("crop_pct", 1e-9, "which must be a number from 0.1 to 1"),
        ("image_size", 10**9, "which must be a whole number from 1 to 8,192"),
        ("in_chans", 2, "in_chans 2, which must be 1 or 3"),
        ("interpolation", None, "which must be nearest, box, bilinear, hamming, bicubic or lanczos"),
        ("interpolation", "sharp", "interpolation 'sharp', which must be nearest"),
    ],
)
def test_a_damaged_record_of_the_preprocessing_is_one_sentence(tmp_path: Path, key: str, value: Any, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        Predictor(artifact(tmp_path, preprocess={**RECORD, key: value}))
