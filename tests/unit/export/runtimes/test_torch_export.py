from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from growtas.checkpoint import load_tensors, save_model
from growtas.errors import BuildError, CheckpointError, ConfigError, OutputError, UsageError
from growtas.export.artifact import write_manifest
from growtas.export.open import open_session
from growtas.export.runtimes.torch_export import OPERATORS, check_program, load_program, save_program
from growtas.export.verification.images import noise
from growtas.nn.architecture import Architecture
from growtas.nn.vit import VisionTransformer
from growtas.space import PRESETS
from growtas.subnet import Subnet


@pytest.fixture(scope="session")
def program(model: VisionTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a program for up to 8 images; not to be changed."""
    path = tmp_path_factory.mktemp("program") / "tiny.pt2"
    save_program(model, path, max_batch=8)
    return path


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_a_program_gives_the_models_logits(program: Path, model: VisionTransformer, batch: int) -> None:
    images = noise(batch, (3, 16, 16))
    with torch.no_grad():
        want = model(torch.from_numpy(images)).numpy()
    with open_session(program, threads=1) as session:
        assert session.image_shape == (3, 16, 16)
        assert (session.info.runtime, session.info.device, session.info.threads) == ("torch.export", "cpu", 1)
        got = session.run(images)
        assert session.timer(images)() > 0
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_a_batch_above_the_maximum_is_refused(program: Path) -> None:
    with load_program(program, threads=1) as session:
        assert session.max_batch == 8
        with pytest.raises(UsageError, match=r"takes batches of 1 to 8, not 9; export it with --max-batch"):
            session.run(noise(9, (3, 16, 16)))
        with pytest.raises(UsageError, match="not 9"):
            session.timer(noise(9, (3, 16, 16)))


def test_weights_keep_the_names_of_the_safetensors_file(program: Path, model: VisionTransformer, tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", model)
    tensors, _ = load_tensors(tmp_path / "m.safetensors")
    loaded = torch.export.load(program).state_dict
    assert set(loaded) == set(tensors)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_saving_again_gives_the_same_bytes_and_leaves_the_model_as_it_was(
    program: Path, model: VisionTransformer, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        save_program(model, tmp_path / "again.pt2", max_batch=8)
    assert (tmp_path / "again.pt2").read_bytes() == program.read_bytes()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for word in (b"site-packages", str(Path.home()).encode() + b"/", b"vit.py"):
        assert word not in program.read_bytes()


def test_one_image_at_most(model: VisionTransformer, tmp_path: Path) -> None:
    save_program(model, tmp_path / "one.pt2", max_batch=1)
    with load_program(tmp_path / "one.pt2", threads=1) as session:
        assert session.run(noise(1, (3, 16, 16))).shape == (1, 10)
    with pytest.raises(ConfigError, match="--max-batch is 0"):
        save_program(model, tmp_path / "none.pt2", max_batch=0)


def rewritten(program: Path, path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The program with other members, which a change has made."""
    with zipfile.ZipFile(program) as archive:
        members = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return path


def in_graph(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(members: dict[str, bytes]) -> None:
        graph = json.loads(members["models/model.json"])
        change(graph)
        members["models/model.json"] = json.dumps(graph).encode()

    return apply


def in_constants(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(members: dict[str, bytes]) -> None:
        config = json.loads(members["data/constants/model_constants_config.json"])
        change(next(iter(config["config"].values())))
        members["data/constants/model_constants_config.json"] = json.dumps(config).encode()

    return apply


class Intruder:
    """Pickled, it runs a function when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def set_target(graph: dict[str, Any], target: Any = "torch.hub.load") -> None:
    graph["graph_module"]["graph"]["nodes"][0]["target"] = target


def add_writer(graph: dict[str, Any], victim: Path) -> None:
    """Lets the graph map a file by ``aten.from_file`` and write into it by ``aten.copy_``."""
    tensors = graph["graph_module"]["graph"]["tensor_values"]
    meta = next(value for value in tensors.values() if value["dtype"] == 7)  # float32
    tensors["mapped"] = tensors["written"] = {**meta, "sizes": [{"as_int": 2}], "strides": [{"as_int": 1}], "requires_grad": False}
    source = graph["graph_module"]["graph"]["nodes"][-1]["outputs"][0]["as_tensor"]["name"]  # logits, (batch, classes)
    tensors["picked"] = tensors["cut"] = tensors["mapped"]

    def node(target: str, inputs: dict[str, Any], output: str) -> dict[str, Any]:
        arguments = [{"name": name, "arg": arg, "kind": 1} for name, arg in inputs.items()]
        return {
            "target": f"torch.ops.aten.{target}",
            "inputs": arguments,
            "outputs": [{"as_tensor": {"name": output}}],
            "metadata": {},
            "is_hop_single_tensor_return": None,
        }

    def tensor(name: str) -> dict[str, Any]:
        return {"as_tensor": {"name": name}}

    mapping = {"filename": {"as_string": str(victim)}, "shared": {"as_bool": True}, "size": {"as_int": 2}}
    graph["graph_module"]["graph"]["nodes"] += [
        node("from_file.default", mapping, "mapped"),
        node("select.int", {"self": tensor(source), "dim": {"as_int": 0}, "index": {"as_int": 0}}, "picked"),
        node(
            "slice.Tensor",
            {"self": tensor("picked"), "dim": {"as_int": 0}, "start": {"as_int": 0}, "end": {"as_int": 2}},
            "cut",
        ),
        node("copy_.default", {"self": tensor("mapped"), "src": tensor("cut")}, "written"),
    ]


def set_in_spec(graph: dict[str, Any]) -> None:
    signature = graph["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = signature["in_spec"].replace("builtins.tuple", "collections.namedtuple")


def set_size(graph: dict[str, Any]) -> None:
    def walk(data: Any) -> None:
        for value in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
            walk(value)
        if isinstance(data, dict) and "expr_str" in data:
            data["expr_str"] = "__import__('os').getpid()"

    walk(graph)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (in_graph(set_size), r"holds the size \"__import__\('os'\)\.getpid\(\)\""),
        (in_graph(set_target), "holds the operator 'torch.hub.load'"),
        (
            in_graph(lambda graph: set_target(graph, "torch.ops.aten.from_file.default")),
            "operator 'torch.ops.aten.from_file.default'",
        ),
        (in_graph(lambda graph: set_target(graph, "torch.ops.aten.add_.Tensor")), "operator 'torch.ops.aten.add_.Tensor'"),
        (in_graph(lambda graph: set_target(graph, "torch.ops.aten.add.out")), "operator 'torch.ops.aten.add.out'"),
        (in_graph(lambda graph: set_target(graph, "_operator.mul")), "operator '_operator.mul'"),
        (in_graph(lambda graph: graph.update(guards_code=["print(1)"])), "guards to be executed"),
        (in_graph(set_in_spec), "containers of other types"),
        (in_graph(lambda graph: graph["graph_module"]["graph"]["custom_obj_values"].update(a={})), "custom objects"),
        (in_constants(lambda payload: payload.update(use_pickle=True)), "as a pickled object"),
        (in_constants(lambda payload: payload.update(path_name="custom_obj_0")), "as a pickled object"),
        (
            lambda members: members.update({"data/aotinductor/model/a.so": b"x"}),
            "'data/aotinductor/model/a.so', which growtas does not",
        ),
        (lambda members: members.update({"data/weights/model.pt": b"x"}), "'data/weights/model.pt', which growtas does not"),
        (lambda members: members.pop("models/model.json"), "not a program of torch.export"),
        (lambda members: members.update({"models/model.json": b"{}"}), "not one that growtas loads"),
    ],
)
def test_what_could_run_code_is_refused(program: Path, tmp_path: Path, change: Any, match: str) -> None:
    path = rewritten(program, tmp_path / "odd.pt2", change)
    with pytest.raises(CheckpointError, match=match) as caught:
        load_program(path)
    assert "\n" not in str(caught.value)


def test_a_program_that_writes_a_file_is_refused(program: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path = rewritten(program, tmp_path / "writer.pt2", in_graph(lambda graph: add_writer(graph, victim)))
    with pytest.raises(CheckpointError, match="the operator 'torch.ops.aten.from_file.default', which growtas does not load"):
        load_program(path)
    assert victim.read_bytes() == b"precious"
    # It is an attack indeed: torch alone runs it, and the file is another one then.
    torch.export.load(path).module()(torch.zeros(2, 3, 16, 16))
    assert victim.read_bytes() != b"precious"


def emitted_operators(folder: Path, presets: Iterable[str]) -> set[str]:
    """The operators of programs of these spaces, with every option that changes a graph."""
    found: set[str] = set()
    path = folder / "model.pt2"
    for space in map(PRESETS.__getitem__, presets):
        whole = Architecture.of(space, space.smallest)
        # Blocks are alike: two show what twelve do. One head, one patch and one image are special cases of an exporter.
        subnet = Subnet(whole.subnet.embed_dim, whole.subnet.num_heads[:2], whole.subnet.mlp_ratio[:2])
        one_head = dataclasses.replace(subnet, num_heads=(1, 1))
        for changes, max_batch in (
            ({"subnet": subnet}, 8),
            ({"subnet": one_head, "in_chans": 1, "num_classes": 0}, 1),
            ({"subnet": subnet, "max_relative_position": None}, 8),
            ({"subnet": one_head, "max_relative_position": None, "image_size": whole.patch_size}, 1),
            ({"subnet": subnet, "image_size": whole.patch_size, "num_classes": 2}, 8),
        ):
            save_program(VisionTransformer(dataclasses.replace(whole, **changes)).eval(), path, max_batch=max_batch)
            with zipfile.ZipFile(path) as archive:
                graph = json.loads(next(archive.read(name) for name in archive.namelist() if name.endswith("models/model.json")))
            found |= {node["target"] for node in graph["graph_module"]["graph"]["nodes"]}
    return found


@pytest.mark.parametrize("presets", [["micro"], pytest.param([*PRESETS], marks=pytest.mark.slow)], ids=" ".join)
def test_exactly_the_operators_that_the_exporter_emits_are_loaded(tmp_path: Path, presets: list[str]) -> None:
    assert emitted_operators(tmp_path, presets) == OPERATORS


def test_a_pickle_in_the_example_inputs_is_not_run(program: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(((Intruder(tmp_path / "ran"),), {}), buffer)
    path = rewritten(
        program, tmp_path / "odd.pt2", lambda members: members.update({"data/sample_inputs/model.pt": buffer.getvalue()})
    )
    with pytest.raises(CheckpointError, match="not one that growtas loads"):
        load_program(path)
    assert not (tmp_path / "ran").exists()
    # It was there, and what unpickling would have called does what it is meant to.
    with zipfile.ZipFile(buffer) as archive:
        assert any(b"touch" in archive.read(name) for name in archive.namelist() if name.endswith(".pkl"))
    function, arguments = Intruder(tmp_path / "ran").__reduce__()
    function(*arguments)
    assert (tmp_path / "ran").exists()


def test_an_untouched_rewritten_program_passes(program: Path, tmp_path: Path) -> None:
    path = rewritten(program, tmp_path / "same.pt2", lambda members: None)
    images = noise(2, (3, 16, 16))
    with load_program(path, threads=1) as same, load_program(program, threads=1) as first:
        np.testing.assert_array_equal(same.run(images), first.run(images))


def test_two_members_of_one_name_are_refused(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "twice.pt2"
    path.write_bytes(program.read_bytes())
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/models/model.json", "{}")
    with pytest.raises(CheckpointError, match="two readers of .pt2 archives|truncated or not"):
        check_program(path.read_bytes(), "twice.pt2")


def test_weights_that_reach_beyond_their_bytes_are_one_sentence(
    program: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def reach(members: dict[str, bytes]) -> None:
        config = json.loads(members["data/weights/model_weights_config.json"])
        for payload in config["config"].values():
            payload["tensor_meta"]["storage_offset"] = {"as_int": 10**9}
        members["data/weights/model_weights_config.json"] = json.dumps(config).encode()

    path = rewritten(program, tmp_path / "far.pt2", reach)
    with pytest.raises(CheckpointError, match=r"far\.pt2: torch can't load the program \(.*storage offset 1000000000"):
        load_program(path)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_a_broken_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.pt2").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.pt2: the program is truncated or not a \.pt2 archive"):
        load_program(tmp_path / "broken.pt2")


def test_a_truncated_program_is_one_sentence(program: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.pt2").write_bytes(program.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"cut\.pt2: the program is truncated"):
        load_program(tmp_path / "cut.pt2")


def test_another_file_than_the_manifests_is_not_read(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(program.read_bytes())
    write_manifest(path, {})
    with load_program(path, threads=1) as session:
        assert session.run(noise(1, (3, 16, 16))).shape == (1, 10)
    path.write_bytes(program.read_bytes() + b"\0")
    monkeypatch.setattr(torch.export, "load", lambda *arguments: pytest.fail("it was loaded"))
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: pytest.fail("it was loaded"))
    with pytest.raises(CheckpointError, match="not the one that its manifest describes"):
        load_program(path)


def test_an_exporter_that_fails_is_a_build_error(model: VisionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("can't trace\nthis")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(BuildError, match=r"can't export the program \(can't trace this\)"):
        save_program(model, tmp_path / "m.pt2", max_batch=8)
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_no_folder_is_an_output_error(model: VisionTransformer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        save_program(model, tmp_path / "file" / "m.pt2", max_batch=8)
