"""Bad content for every kind of file that growtas reads: typed mutations, damaged bytes, hostile objects, and files made to harm.

Each mutation is a pair of a name and a function that is given the path of a good file and puts the bad one in its place.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import pickle
import random
import socket
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

Mutation = tuple[str, Callable[[Path], None]]

DEEP = 5_000
TEXTS = {
    "a text of 1 MB": "x" * 1_000_000,
    "a name of 300 letters": "x" * 300,
    "a path of 5,000 letters": "x/" * 2_500,
    "a null character": "a\0b",
    "a path that leads out": "../../../outside/written",
    "an absolute path": "/proc/self/mem",
    "a device": "/dev/zero",
    "a URL": "http://127.0.0.1:9/x",
    "markup and escapes": "\x1b[31m[/][bold]:cat:\r\n\u202e",
    "a lone surrogate": "\ud800",
    "no text": "",
}
VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "minus one": -1,
    "zero": 0,
    "one and a half": 1.5,
    "a million": 10**6,
    "10**400": 10**400,
    "1e308": 1e308,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "an empty list": [],
    "an empty object": {},
    "a list of null": [None],
    "a list of lists": [[[]]],
    "a list of 100,000 numbers": [1] * 100_000,
    "an object with an odd key": {"": {"a": [1]}},
    **TEXTS,
}


def _paths(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of each entry of JSON data; of a list, the first and the last item's."""
    items: Any = ()
    if isinstance(data, dict):
        items = data.items()
    elif isinstance(data, list) and data:
        items = {0: data[0], len(data) - 1: data[-1]}.items()
    for key, value in items:
        yield (*path, key)
        if len(path) < 5:
            yield from _paths(value, (*path, key))


def _changed(data: Any, path: tuple[Any, ...], value: Any, *, remove: bool = False) -> Any:
    made = copy.deepcopy(data)
    place = made
    for key in path[:-1]:
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return made


def typed(data: Any, dump: Callable[[Any], bytes]) -> Iterator[Mutation]:
    """Mutations of every entry of a document.

    Args:
        data: the content of the good file.
        dump: writes such content as the file's bytes.
    """

    def write(content: Callable[[], bytes]) -> Callable[[Path], None]:
        return lambda path: replaced(path, content())

    for path in _paths(data):
        name = ".".join(map(str, path))
        yield f"{name} is missing", write(lambda path=path: dump(_changed(data, path, None, remove=True)))
        for what, value in VALUES.items():
            yield f"{name} is {what}", write(lambda path=path, value=value: dump(_changed(data, path, value)))
    for what, value in VALUES.items():
        yield f"the content is {what}", write(lambda value=value: dump(value))


def random_values(data: Any, dump: Callable[[Any], bytes], count: int, number: int) -> list[Mutation]:
    """Mutations by hypothesis: a random entry becomes random JSON data."""
    paths = list(_paths(data)) or [()]
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    values = st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    )
    drawn: list[tuple[tuple[Any, ...], Any]] = []

    @seed(number)
    @settings(max_examples=count, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None)
    @given(st.sampled_from(paths), values)
    def draw(path: tuple[Any, ...], value: Any) -> None:
        drawn.append((path, value))

    draw()
    return [
        (
            f"{'.'.join(map(str, path))} is random: {str(value)[:40]!r}",
            lambda file, path=path, value=value: replaced(file, dump(_changed(data, path, value) if path else value)),
        )
        for path, value in drawn
    ]


def replaced(path: Path, content: bytes) -> None:
    """Writes a file in place of another one, which may have other names too."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def damaged(good: bytes, rng: random.Random) -> Iterator[Mutation]:
    """Mutations of bytes: truncations, flipped bits, other content."""
    size = len(good)
    for share in (0.0, 0.01, 0.5, 0.9, 0.999):
        yield f"truncated to {share:.1%}", lambda path, share=share: replaced(path, good[: int(size * share)])
    yield "longer", lambda path: replaced(path, good + bytes(1000))
    yield "twice", lambda path: replaced(path, good * 2)
    yield "zeros", lambda path: replaced(path, bytes(size))
    yield "random bytes", lambda path: replaced(path, rng.randbytes(size))
    yield "other magic", lambda path: replaced(path, b"GIF89a" + good[6:])
    yield "a gzip file", lambda path: replaced(path, gzip.compress(good))
    yield "UTF-16", lambda path: replaced(path, "{}".encode("utf-16"))
    for number in range(12):
        place, bit = rng.randrange(max(1, min(size, 4000 if number % 2 else size))), rng.randrange(8)
        flipped = bytearray(good)
        if size:
            flipped[place] ^= 1 << bit
        yield f"bit {bit} of byte {place} flipped", lambda path, flipped=bytes(flipped): replaced(path, flipped)


def documents() -> Iterator[Mutation]:
    """Texts that are no documents, or documents that expand or nest without end."""
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True))
    texts = {
        "lists 5,000 deep": "[" * DEEP,
        "closed lists 5,000 deep": "[" * DEEP + "]" * DEEP,
        "objects 5,000 deep": '{"a":' * DEEP + "1" + "}" * DEEP,
        "a number of 5,000 digits": "9" * DEEP,
        "an object with a key twice": '{"a": 1, "a": 2}',
        "aliases that expand": bomb,
        "an alias in itself": "&a [*a]",
        "a merge key": "<<: {a: 1}",
        "a tag that runs code": "!!python/object/apply:os.system ['touch ../canary-ran']",
        "100,000 lines": "{}\n" * 100_000,
        "a byte order mark twice": "\ufeff\ufeff{}",
        "control characters": "\x00\x1b[31m",
    }
    for name, text in texts.items():
        yield name, lambda path, text=text: replaced(path, text.encode())
    yield "1 TB of nothing", _sparse


def _sparse(path: Path) -> None:
    path.unlink(missing_ok=True)
    with open(path, "wb") as file:
        file.truncate(10**12)


def objects() -> Iterator[Mutation]:
    """Things that are not regular files."""

    def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
        def put(path: Path) -> None:
            path.unlink(missing_ok=True)
            make(path)

        return put

    def bind(path: Path) -> None:
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket is short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
        os.chdir(here)

    yield "missing", instead(lambda path: None)
    yield "a FIFO", instead(os.mkfifo)
    yield "a folder", instead(Path.mkdir)
    yield "a socket", instead(bind)
    yield "a link to /dev/zero", instead(lambda path: path.symlink_to("/dev/zero"))
    yield "a link to /dev/stdin", instead(lambda path: path.symlink_to("/dev/stdin"))
    yield "a link to /proc/self/mem", instead(lambda path: path.symlink_to("/proc/self/mem"))
    yield "a link to nothing", instead(lambda path: path.symlink_to("nothing"))
    yield "a link to itself", instead(lambda path: path.symlink_to(path.name))
    yield "a link to a long name", instead(lambda path: path.symlink_to("x" * 300))
    if os.geteuid() == 0:
        yield "a device", instead(lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5)))


class _Harm:
    """When it is unpickled, writes a file beside the folder of the case."""

    def __reduce__(self) -> Any:
        return exec, ("open('../canary-ran', 'w')",)


def pickles() -> Iterator[Mutation]:
    """Pickles that run code, or that take memory."""
    import torch

    def saved(content: Any) -> bytes:
        stream = io.BytesIO()
        torch.save(content, stream)
        return stream.getvalue()

    makers: dict[str, Callable[[], bytes]] = {
        "a pickle that runs code": lambda: pickle.dumps(_Harm()),
        "a checkpoint that runs code": lambda: saved({"model": _Harm()}),
        "a pickle of a number": lambda: pickle.dumps(3),
        "a checkpoint with a number as name": lambda: saved({"model": {1: torch.zeros(2)}}),
        "a checkpoint of expanded tensors": lambda: saved({"model": {"a": torch.zeros(1).expand(10**9)}}),
        "a checkpoint of sparse tensors": lambda: saved({"model": {"a": torch.eye(2).to_sparse()}}),
        "a checkpoint of whole numbers": lambda: saved({"model": {"a": torch.ones(2, dtype=torch.int64)}}),
        "a checkpoint of texts": lambda: saved({"model": {"a": "b"}}),
        "a checkpoint of a list": lambda: saved([1]),
        "a huge bytearray": lambda: pickle.dumps(bytearray(8)),
        "a pickle of 10,000 levels": lambda: b"\x80\x02" + b"(" * 10_000 + b"l" * 10_000 + b".",
        "a memo without end": lambda: b"\x80\x02K\x01r\xff\xff\xff\x7f.",
    }
    for name, make in makers.items():
        yield name, lambda path, make=make: replaced(path, make())


def archives(good: bytes) -> Iterator[Mutation]:
    """Zip archives that expand, repeat or leave the archive, made from a good archive of torch."""

    def rebuilt(
        change: Callable[[str, bytes], list[tuple[str, bytes]]], compression: int = zipfile.ZIP_STORED
    ) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            stream = io.BytesIO()
            with zipfile.ZipFile(io.BytesIO(good)) as source, zipfile.ZipFile(stream, "w", compression) as made:
                for name in source.namelist():
                    for other, content in change(name, source.read(name)):
                        made.writestr(other, content)
            replaced(path, stream.getvalue())

        return write

    def bomb(path: Path) -> None:
        with zipfile.ZipFile(io.BytesIO(good)) as source:
            name = source.namelist()[0]
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made, made.open(name, "w") as member:
            for _ in range(500):
                member.write(bytes(1_000_000))
        replaced(path, stream.getvalue())

    yield "a zip bomb", bomb
    yield "compressed members", rebuilt(lambda name, content: [(name, content)], zipfile.ZIP_DEFLATED)
    yield "members twice", rebuilt(lambda name, content: [(name, content)] * 2)
    yield "members that lead out", rebuilt(lambda name, content: [(name, content), (f"a/../../../{Path(name).name}", content)])
    yield "members with absolute names", rebuilt(lambda name, content: [(f"/{name}", content)])
    yield "empty members", rebuilt(lambda name, content: [(name, b"")])
    yield "no member", rebuilt(lambda name, content: [])
    with zipfile.ZipFile(io.BytesIO(good)) as source:
        names = source.namelist()
    for name in names:
        short = name.rpartition("/")[2]
        yield f"without the member {short}", rebuilt(lambda n, c, name=name: [] if n == name else [(n, c)])
        for what, content in {
            "empty": b"", "random": bytes(range(256)) * 4, "a pickle that runs code": pickle.dumps(_Harm()),
            "lists 5,000 deep": b"[" * DEEP, "an empty object": b"{}", "null": b"null", "a number": b"9" * DEEP,
        }.items():  # fmt: skip
            yield (
                f"the member {short} is {what}",
                rebuilt(lambda n, c, name=name, content=content: [(n, content if n == name else c)]),
            )


def json_members(good: bytes) -> Iterator[Mutation]:
    """Typed mutations of the JSON members of an archive, and other operators in them."""
    with zipfile.ZipFile(io.BytesIO(good)) as source:
        members = {name: source.read(name) for name in source.namelist()}

    def packed(name: str, content: bytes) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as made:
            for other, old in members.items():
                made.writestr(other, content if other == name else old)
        return stream.getvalue()

    for name, content in members.items():
        if name.endswith(".json"):
            short = name.rpartition("/")[2]
            for what, put in typed(json.loads(content), lambda data, name=name: packed(name, json_bytes(data))):
                yield f"{short}: {what}", put
            for target in ("torch.ops.aten.from_file.default", "os.system", "torch.ops.evil.run.default", "torch.hub.load"):
                other = content.replace(b"torch.ops.aten.addmm.default", target.encode())
                other = other if other != content else content.replace(b"torch.ops.aten.linear.default", target.encode())
                yield f"{short}: calls {target}", lambda path, name=name, other=other: replaced(path, packed(name, other))


def safetensors(good: bytes) -> Iterator[Mutation]:
    """Headers that lie about the tensors, and typed mutations of a header and of growtas' metadata in it."""
    length = int.from_bytes(good[:8], "little")
    header, data = json.loads(good[8 : 8 + length]), good[8 + length :]

    def packed(content: Any) -> bytes:
        text = json_bytes(content)
        return len(text).to_bytes(8, "little") + text + data

    names = [name for name in header if name != "__metadata__"]
    short = {"__metadata__": header.get("__metadata__", {}), **{name: header[name] for name in (names[0], names[-1])}}
    rest = {name: header[name] for name in names}
    for what, put in typed(short, lambda made: packed({**rest, **made} if isinstance(made, dict) else made)):
        yield f"header: {what}", put
    metadata = json.loads(short["__metadata__"].get("growtas", "{}"))
    for what, put in typed(metadata, lambda made: packed({**header, "__metadata__": {"growtas": json_bytes(made).decode()}})):
        yield f"metadata: {what}", put
    yield "a header of 2**63 bytes", lambda path: replaced(path, (2**63).to_bytes(8, "little") + good[8:])
    yield "a header of 90 MB", lambda path: replaced(path, (90_000_000).to_bytes(8, "little") + b" " * 90_000_000)
    yield (
        "100,000 tensors",
        lambda path: replaced(
            path, packed({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)})
        ),
    )


def onnx_files(good: bytes) -> Iterator[Mutation]:
    """Graphs that would compute, expand or read without end when they are loaded."""
    import onnx
    from onnx import TensorProto, helper

    def constant(name: str, values: list[int]) -> Any:
        return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)

    def grown(nodes: list[Any], initializers: list[Any] = [], **more: Any) -> Callable[[Path], None]:  # noqa: B006
        def write(path: Path) -> None:
            model = onnx.load_model_from_string(good)
            model.graph.initializer.extend(initializers)
            joined = nodes[-1].output[0]
            for number, node in enumerate(nodes):
                model.graph.node.insert(number, node)
            model.graph.output.append(helper.make_empty_tensor_value_info(joined))
            model.functions.extend(more.get("functions", []))
            for domain in more.get("domains", []):
                model.opset_import.append(helper.make_opsetid(domain, 1))
            replaced(path, model.SerializeToString())

        return write

    start = helper.make_tensor("start", TensorProto.FLOAT, [1024], [1.0] * 1024)

    def doubling(kind: str, count: int = 24) -> Callable[[Path], None]:
        nodes, extra = [], [start, constant("two", [2]), constant("shape", [2, 1])]
        for number in range(count):
            before, after = "start" if number == 0 else f"d{number}", f"d{number + 1}"
            if kind == "Concat":
                nodes.append(helper.make_node("Concat", [before, before], [after], axis=0))
            elif kind == "Tile":
                nodes.append(helper.make_node("Tile", [before, "two"], [after]))
            elif kind == "Expand":
                extra.append(constant(f"e{number}", [2] * (number + 1) + [1024]))
                nodes.append(helper.make_node("Expand", [before, f"e{number}"], [after]))
            elif kind == "Add":
                nodes.append(helper.make_node("Unsqueeze", [before, "axis"], [f"u{number}"]))
                nodes.append(helper.make_node("Add", [f"u{number}", before], [after]))
            else:
                nodes.append(helper.make_node("Pad", [before, f"p{number}"], [after]))
                extra.append(constant(f"p{number}", [1024 * 2**number, 0]))
        if kind == "Add":
            extra.append(constant("axis", [-1]))
        return grown(nodes, extra)

    for kind in ("Concat", "Tile", "Expand", "Add", "Pad"):
        yield f"a constant doubled 24 times by {kind}", doubling(kind)
    big = constant("big", [2**31])
    yield "ConstantOfShape of 2**31", grown([helper.make_node("ConstantOfShape", ["big"], ["c"])], [big])
    yield (
        "ConstantOfShape of a computed shape",
        grown(
            [helper.make_node("Mul", ["k", "k"], ["kk"]), helper.make_node("ConstantOfShape", ["kk"], ["c"])],
            [constant("k", [50_000])],
        ),
    )
    scalars = [
        helper.make_tensor(name, TensorProto.INT64, [], [value]) for name, value in (("from", 0), ("to", 2**31), ("step", 1))
    ]
    yield "Range of 2**31", grown([helper.make_node("Range", ["from", "to", "step"], ["c"])], scalars)
    for kind in ("RandomNormal", "RandomUniform"):
        yield f"{kind} of 2**31", grown([helper.make_node(kind, [], ["c"], shape=[2**16, 2**15])])
    yield (
        "EyeLike of 2**32",
        grown(
            [helper.make_node("ConstantOfShape", ["side"], ["s"]), helper.make_node("EyeLike", ["s"], ["c"])],
            [constant("side", [65536, 65536])],
        ),
    )
    yield (
        "OneHot of 2**31",
        grown(
            [helper.make_node("OneHot", ["ids", "wide", "onoff"], ["c"])],
            [constant("ids", [1]), constant("wide", [2**31]), helper.make_tensor("onoff", TensorProto.FLOAT, [2], [0.0, 1.0])],
        ),
    )
    yield (
        "Resize by 10**5",
        grown(
            [helper.make_node("Resize", ["start", "", "by"], ["c"])],
            [start, helper.make_tensor("by", TensorProto.FLOAT, [1], [1e6])],
        ),
    )
    yield "MatMul of outer products", grown(
        [helper.make_node("Reshape", ["flat", "tall"], ["t"]), helper.make_node("Reshape", ["flat", "long"], ["l"]),
         helper.make_node("MatMul", ["t", "l"], ["c"])],
        [helper.make_tensor("flat", TensorProto.FLOAT, [20_000], [1.0] * 20_000), constant("tall", [20_000, 1]),
         constant("long", [1, 20_000])],
    )  # fmt: skip
    functions = [
        helper.make_function(
            "own", f"f{i}", ["x"], ["y"],
            [helper.make_node(f"f{i + 1}" if i < 29 else "Identity", [a], [b], domain="own" if i < 29 else "")
             for a, b in (("x", "t"), ("t", "y"))],
            [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)],
        )
        for i in range(30)
    ]  # fmt: skip
    yield (
        "functions that expand",
        grown([helper.make_node("f0", ["start"], ["c"], domain="own")], [start], functions=functions, domains=["own"]),
    )
    yield "an operator of nobody", grown([helper.make_node("Run", ["start"], ["c"], domain="evil")], [start], domains=["evil"])
    loop = helper.make_graph(
        [helper.make_node("Concat", ["state", "state"], ["next"], axis=0), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("state", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("next", TensorProto.FLOAT, None)],
    )  # fmt: skip
    yield (
        "a loop that doubles",
        grown(
            [helper.make_node("Loop", ["trip", "", "start"], ["c"], body=loop)],
            [start, helper.make_tensor("trip", TensorProto.INT64, [], [40])],
        ),
    )

    def moved(location: str, **entries: str) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            model = onnx.load_model_from_string(good)
            weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
            weight.ClearField("raw_data")
            weight.data_location = TensorProto.EXTERNAL
            for key, value in {"location": location, **entries}.items():
                weight.external_data.add(key=key, value=value)
            replaced(path, model.SerializeToString())

        return write

    for location in ("../../../outside/secret", "/dev/zero", "/etc/passwd", "", "a" * 300, "nothing", ".", "a\0b"):
        yield f"weights in {location[:30]!r}", moved(location)
    yield "weights at a negative place", moved("run.json", offset="-1", length="9" * 30)
    # Typed mutations of the metadata that growtas itself reads.
    for entry in onnx.load_model_from_string(good).metadata_props:
        for what, value in {**TEXTS, "lists 5,000 deep": "[" * DEEP, "null": "null", "a list": "[]", "an object": "{}"}.items():
            if "\ud800" not in value:

                def write(path: Path, key: str = entry.key, value: str = value) -> None:
                    model = onnx.load_model_from_string(good)
                    next(prop for prop in model.metadata_props if prop.key == key).value = value
                    replaced(path, model.SerializeToString())

                yield f"metadata {entry.key} is {what}", write


def irs(good: bytes) -> Iterator[Mutation]:
    """OpenVINO graphs with other operators, huge constants, entities."""
    text = good.decode()
    import re

    attributes = re.compile(r'(shape|offset|size|element_type|type|version|id|from-layer|to-layer|from-port|to-port|dim)="([^"]*)"')
    places = list(attributes.finditer(text))
    step = max(1, len(places) // 40)
    for match in places[::step]:
        for value in ("-1", "9" * 20, "x" * 1_000, "99999,99999,9", "", "1e9"):
            made = f"{text[: match.start(2)]}{value}{text[match.end(2) :]}"
            yield f"{match[1]} at {match.start()} is {value[:12]!r}", lambda path, made=made: replaced(path, made.encode())
    yield (
        "an operator of an extension",
        lambda path: replaced(path, text.replace('version="opset1"', 'version="extension"', 1).encode()),
    )
    yield "an entity", lambda path: replaced(path, b"<!DOCTYPE a [<!ENTITY b 'c'>]>" + good)
    yield "elements 5,000 deep", lambda path: replaced(path, b"<net>" * DEEP)
    for kind in ("Broadcast", "Tile", "Range", "Concat"):
        yield f"a huge {kind}", lambda path, kind=kind: replaced(path, _huge_ir(text, kind))


def _huge_ir(text: str, kind: str) -> bytes:
    """An IR with one more operator whose result is declared with 2**31 numbers."""
    layer = (
        f'<layer id="99990" name="shape" type="Const" version="opset1"><data element_type="i64" shape="1" offset="0" size="8"/>'
        '<output><port id="0" precision="I64"><dim>1</dim></port></output></layer>'
        f'<layer id="99991" name="huge" type="{kind}" version="opset1"><data axis="0" mode="numpy" output_type="f32"/>'
        '<input><port id="0" precision="I64"><dim>1</dim></port><port id="1" precision="I64"><dim>1</dim></port></input>'
        '<output><port id="2" precision="I64"><dim>2147483648</dim></port></output></layer></layers>'
    )
    edges = (
        '<edge from-layer="99990" from-port="0" to-layer="99991" to-port="0"/>'
        '<edge from-layer="99990" from-port="0" to-layer="99991" to-port="1"/></edges>'
    )
    return text.replace("</layers>", layer, 1).replace("</edges>", edges, 1).encode()


def images(good: bytes) -> Iterator[Mutation]:
    """Images whose headers declare more than they hold."""

    def png(width: int, height: int, body: bytes = b"", extra: bytes = b"", color: int = 2, bits: int = 8) -> bytes:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")

    def text_chunk() -> bytes:
        data = b"a\0\0" + zlib.compress(bytes(100_000_000), 9)
        return struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))

    yield "a PNG of 100,000 x 100,000", lambda path: replaced(path, png(100_000, 100_000, zlib.compress(bytes(10_000_000), 1)))
    yield "a PNG of 2**31 x 1", lambda path: replaced(path, png(2**31 - 1, 1))
    yield "a PNG of 0 x 0", lambda path: replaced(path, png(0, 0))
    yield "a PNG of 16 bits without rows", lambda path: replaced(path, png(8, 8, b"", color=0, bits=16))
    yield "a PNG whose text expands", lambda path: replaced(path, png(8, 8, zlib.compress(bytes(8 * 25)), text_chunk()))
    yield (
        "a GIF of 65,535 x 65,535",
        lambda path: replaced(
            path,
            b"GIF89a"
            + struct.pack("<HH", 65535, 65535)
            + b"\x80\0\0"
            + bytes(6)
            + b","
            + struct.pack("<HHHH", 0, 0, 65535, 65535)
            + b"\0\x08\x01\0\0;",
        ),
    )
    bmp = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0)
    yield "a BMP of 100,000 x 100,000", lambda path: replaced(path, bmp)
    yield "a PPM of 100,000 x 100,000", lambda path: replaced(path, b"P6 100000 100000 255\n")
    yield "an EPS", lambda path: replaced(path, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(../canary-ran) (w) file\n")
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", 4)
    for tag, kind, value in ((256, 4, 100_000), (257, 4, 100_000), (273, 4, 8), (279, 4, 2**31)):
        tiff += struct.pack("<HHII", tag, kind, 1, value)
    yield "a TIFF of 100,000 x 100,000", lambda path: replaced(path, tiff + bytes(4))
    yield (
        "a TIFF whose directory is a loop",
        lambda path: replaced(path, b"II*\0\x08\0\0\0" + struct.pack("<H", 0) + struct.pack("<I", 8)),
    )
    yield "a text", lambda path: replaced(path, b"hello")
    yield "an SVG", lambda path: replaced(path, b"<svg xmlns='http://www.w3.org/2000/svg'/>")


def idx_files(good: bytes) -> Iterator[Mutation]:
    """IDX files, packed by gzip, that lie about their size."""
    content = gzip.decompress(good)
    for name, head in {
        "2**31 images": struct.pack(">HBB3I", 0, 8, 3, 2**31, 28, 28),
        "images of 2**31 pixels": struct.pack(">HBB3I", 0, 8, 3, 10, 2**16, 2**15),
        "200 dimensions": struct.pack(">HBB", 0, 8, 200) + b"\0\0\0\1" * 200,
        "no dimension": struct.pack(">HBB", 0, 8, 0),
        "another type": struct.pack(">HBB3I", 0, 13, 3, 10, 28, 28),
    }.items():
        yield name, lambda path, head=head: replaced(path, gzip.compress(head + content[16:], 1))
    yield "a gzip bomb", lambda path: replaced(path, gzip.compress(content[:16] + bytes(300_000_000), 1))
    yield "gzip in gzip", lambda path: replaced(path, gzip.compress(good))


def checkpoints(good: bytes) -> Iterator[Mutation]:
    """Archives of torch and pickles."""
    yield from archives(good)
    yield from pickles()


def programs(good: bytes) -> Iterator[Mutation]:
    """Archives of torch, their JSON members, and pickles."""
    yield from checkpoints(good)
    yield from json_members(good)


def json_bytes(data: Any) -> bytes:
    """JSON, also of numbers that are not finite and of long numbers."""
    return json.dumps(data).encode()


def yaml_bytes(data: Any) -> bytes:
    """YAML."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=False, width=10**7).encode("utf-8", "surrogatepass")
