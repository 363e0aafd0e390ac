"""``python -m tests.evidence.bad_files``: gives bad files of every kind that growtas reads to the commands that read them.

First it makes good files of every kind by a tiny training, searches and exports. Then it puts one bad file at a time in the place
of a good one, and runs commands that read it, each in a forked child of this process, which imports everything once but never
computes.

A command must end with exit code 0, 1 or 2; a refusal is one sentence of less than 1,000 characters on stderr. Until a model runs,
it may take at most one second of CPU time and 200 MB more memory than the idle process. It must not write outside its folder, and
must not run code of the file. Files that stay valid after the change are counted as accepted.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import importlib
import json
import os
import pkgutil
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from growtas.cli import main
from tests.evidence import bad_content as bad
from tests.evidence.bad_content import Mutation

CPU_S, MEMORY_KB, MESSAGE = 1.0, 200_000, 1_000
_HANG_S, _ADDRESSES = 60, 6 * 2**30
"""Seconds after which a command is killed; bytes of address space that it may add."""
_EXPECTED = ("secret", ".cache", ".config", "intel", "torchinductor_root")
"""What lies outside the case's folder before the command, and what libraries create when they are imported."""
TINY = {
    "name": "tiny", "embed_dim": [16, 32], "num_heads": [1, 2], "mlp_ratio": [1, 2], "depth": [1, 2], "image_size": 8,
    "patch_size": 4, "head_dim": 16, "num_classes": 10,
}  # fmt: skip
_MEASURED = ("timings", "journal of a profile")
"""Kinds that are read by commands that measure latencies."""
R, S, E = "runs/r", "runs/s", "runs/r/export/tiny-subnet"


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: name of the kind in the report.
        file: the good file.
        commands: command lines that read it.
        mutations: makes its typed mutations from the content of the good file.
        document: whether its content is text, so that the texts of :func:`tests.evidence.bad_content.documents` are tried.
    """

    name: str
    file: str
    commands: Sequence[str]
    mutations: Callable[[bytes], Iterator[Mutation]] = field(default=lambda good: iter(()))
    document: bool = False


def json_kind(name: str, file: str, *commands: str) -> Kind:
    return Kind(name, file, commands, lambda good: bad.typed(json.loads(good), bad.json_bytes), document=True)


def lines_kind(name: str, file: str, *commands: str) -> Kind:
    def dump(lines: Any) -> bytes:
        return b"".join(bad.json_bytes(line) + b"\n" for line in lines) if isinstance(lines, list) else bad.json_bytes(lines)

    return Kind(name, file, commands, lambda good: bad.typed([json.loads(line) for line in good.splitlines()], dump), document=True)


def yaml_kind(name: str, file: str, *commands: str) -> Kind:
    import yaml

    return Kind(name, file, commands, lambda good: bad.typed(yaml.safe_load(good), bad.yaml_bytes), document=True)


READERS = ("runs", f"show {R}", f"report {R}")
REPLAY = f"search {R} --replay --max-params 900K"
SEARCH = f"search {R} --generations 2 --population 6 --max-params 1M"
EXPORT = f"export {R} --format torch --images 16 --out runs/r/other"
RESUME = "train --resume runs/s"
USERS = (
    *(f"{command} {{}}" for command in ("inspect", "inspect --verify", "predict good.png --model", "serve")),
    "verify {} --images 16",
    "bench {} --batch 1 --rounds 1 --seconds 0.01 --no-roofline",
)


def users(suffix: str) -> tuple[str, ...]:
    return tuple(command.format(E + suffix) for command in USERS)


TUNE = "finetune runs/r --data digits --epochs 1 --name f2"
OTHER_USERS = (
    f"finetune {E}.safetensors --data digits --epochs 1 --name f2",
    f"train --teacher {E}.safetensors --space space.yaml --epochs 1 --name t2",
)
TEACHER = "train --teacher test_vit --teacher-checkpoint teacher.pth --epochs 1 --space space.yaml --name t2"
IMPORT = "import timm test_vit --weights teacher.pth --name v"
PHOTOS = (
    "train --data photos --space space.yaml --dry-run",
    "train --data photos --space space.yaml --epochs 1 --name t2",
    "finetune runs/r --data photos --epochs 1 --name f2",
)
IDX = "train --data fashion-mnist --data-dir idx --dry-run"
TRITON = f"export {R} --format onnx --images 16 --triton repo --out other"
BENCH = f"bench {R} --batch 1 --rounds 1 --seconds 0.01 --no-roofline"
SEARCH_S = f"search {S} --max-params 1M --generations 1 --population 4"
SEARCH_P = "search runs/p --device cpu --max-latency 5ms --generations 1 --population 4"
PROFILE = (
    "profile --device cpu --space space.yaml --samples 6 --held-out 2 --repeats 1 --seconds 0.001 --out profiles/cpu.tiny.json"
)
KINDS = [
    yaml_kind(
        "search space (YAML)",
        "space.yaml",
        "cost subnet.json --space space.yaml",
        "train --space space.yaml --dry-run",
        "import autoformer m.pth --space space.yaml --name imported",
    ),
    yaml_kind("recipe (YAML)", "recipe.yaml", "train --config recipe.yaml --dry-run", f"{TUNE} --config recipe.yaml"),
    json_kind(
        "subnet",
        "subnet.json",
        "cost subnet.json --space space.yaml",
        f"{EXPORT} --subnet subnet.json",
        f"{TUNE} --subnet subnet.json",
    ),
    json_kind(
        "run.json",
        f"{R}/run.json",
        *READERS,
        REPLAY,
        SEARCH,
        EXPORT,
        f"predict good.png --model {E}.onnx",
        f"verify --run {R} --images 16",
        "runs --json",
        "train --init runs/r --epochs 1 --name t2 --dry-run",
        TUNE,
        BENCH,
        "profile --device cpu --space runs/r --samples 0",
    ),
    json_kind("run.json of a stopped run", f"{S}/run.json", RESUME, f"show {S}", "runs", SEARCH_S),
    json_kind(
        "run.json of a fine-tuning",
        "runs/f/run.json",
        "show runs/f",
        "report runs/f",
        "export runs/f --format torch --images 16",
        "runs",
    ),
    json_kind("data.json", f"{R}/data.json", *READERS, SEARCH),
    json_kind("split.json", f"{S}/split.json", RESUME, f"show {S}", f"report {S}", SEARCH_S),
    lines_kind("metrics.jsonl", f"{S}/metrics.jsonl", RESUME, f"show {S}", f"report {S}", "runs"),
    json_kind("state.json", f"{S}/checkpoints/epoch-0001/state.json", RESUME, f"show {S}", f"report {S}"),
    json_kind("best.json", f"{S}/checkpoints/best-epoch-0001/best.json", RESUME, f"show {S}", f"report {S}", "runs"),
    Kind(
        "supernet.safetensors",
        f"{S}/checkpoints/epoch-0001/supernet.safetensors",
        (RESUME, SEARCH_S, f"train --init {S} --epochs 1 --name t2 --dry-run", f"show {S}"),
        bad.safetensors,
    ),
    Kind("trainer.safetensors", f"{S}/checkpoints/epoch-0001/trainer.safetensors", (RESUME, f"show {S}"), bad.safetensors),
    Kind("init.safetensors", "runs/i/init.safetensors", ("train --resume runs/i", "show runs/i", "report runs/i"), bad.safetensors),
    yaml_kind("recipe.yaml of a run", f"{R}/recipe.yaml", f"report {R}", f"show {R}", f"train --config {R}/recipe.yaml --dry-run"),
    lines_kind("journal.jsonl", f"{R}/search/journal.jsonl", REPLAY, SEARCH, f"report {R}", f"show {R}"),
    json_kind("result.json of a search", f"{R}/search/result.json", f"report {R}", f"show {R}", EXPORT, "runs", REPLAY),
    json_kind("subnet.json of a search", f"{R}/search/subnet.json", EXPORT, f"report {R}", TUNE, f"show {R}"),
    json_kind("result.json of a replay", f"{R}/search/replay/result.json", f"report {R}", f"show {R}", REPLAY),
    json_kind("front.json", "runs/p/search/front.json", "report runs/p", "show runs/p"),
    lines_kind("timings", "runs/p/search/cpu-timings.jsonl", SEARCH_P, "report runs/p"),
    json_kind("bench.json", f"{R}/bench/bench.json", f"report {R}", f"show {R}", f"inspect {E}.onnx"),
    json_kind("device profile", "profiles/mine.json", "devices", SEARCH_P.replace("cpu", "mine"), f"report {R}"),
    json_kind("measured profile", "profiles/cpu.tiny.json", "devices", SEARCH_P),
    lines_kind("journal of a profile", "profiles/cpu.tiny.jsonl", PROFILE, "devices"),
    json_kind("manifest (onnx)", f"{E}.onnx.json", *users(".onnx"), EXPORT, f"report {R}"),
    json_kind("manifest (safetensors)", f"{E}.safetensors.json", *users(".safetensors"), *OTHER_USERS),
    json_kind("manifest (pt2)", f"{E}.pt2.json", *users(".pt2")),
    json_kind("manifest (IR)", f"{E}.xml.json", *users(".xml")),
    json_kind("manifest (plan)", f"{E}.plan.json", *users(".plan")),
    json_kind("manifest (int8)", f"{R}/export/tiny-subnet.int8.onnx.json", *users(".int8.onnx")),
    Kind(".onnx", f"{E}.onnx", users(".onnx"), bad.onnx_files),
    Kind(".safetensors", f"{E}.safetensors", (*users(".safetensors"), *OTHER_USERS), bad.safetensors),
    Kind(".pt2", f"{E}.pt2", users(".pt2"), bad.programs),
    Kind(".xml", f"{E}.xml", users(".xml"), bad.irs),
    Kind(".bin", f"{E}.bin", users(".xml")),
    Kind(".plan", f"{E}.plan", users(".plan")),
    Kind(".pth of AutoFormer", "m.pth", ("import autoformer m.pth --space space.yaml --name imported",), bad.checkpoints),
    Kind("weights of a timm model", "teacher.pth", (IMPORT, TEACHER), bad.checkpoints),
    Kind("image to predict", "good.png", (f"predict good.png --model {E}.onnx",), bad.images),
    Kind("image of a data set", "photos/a/0.png", PHOTOS, bad.images),
    Kind("IDX file", "idx/train-images-idx3-ubyte.gz", (IDX,), bad.idx_files),
    Kind("labels (IDX)", "idx/train-labels-idx1-ubyte.gz", (IDX,), bad.idx_files),
    Kind("model card", f"{R}/export/README.md", (f"export {R} --format torch --images 16",), document=True),
    Kind("Triton configuration", "repo/tiny-subnet/config.pbtxt", (TRITON,), document=True),
]


@dataclass
class Outcome:
    """What a command did: exit code (a negative signal number if it was killed), texts, CPU seconds and kilobytes above idle."""

    command: str
    code: int
    err: str
    cpu_s: float = 0.0
    memory_kb: int = 0
    ran_model: bool = False
    written: list[str] = field(default_factory=list)

    @property
    def killed(self) -> bool:
        """Whether it took so long that it was killed."""
        return self.code == -signal.SIGKILL

    def faults(self) -> Iterator[tuple[str, str]]:
        """Yields each broken rule as the report's column, and the reason."""
        lines = [line for line in self.err.splitlines() if line.startswith("growtas: ")]
        if self.killed:
            if not self.ran_model:
                yield "slow", f"killed after {_HANG_S} s"
        elif self.code not in (0, 1, 2):
            yield "unexpected", f"exit code {self.code}"
        elif "Traceback" in self.err or "growtas: unexpected " in self.err:
            yield "unexpected", self.err[-600:]
        elif (self.code == 2 and len(lines) != 1) or len(lines) > 1:
            yield "unexpected", f"{len(lines)} sentences: {self.err[-300:]!r}"
        elif any(len(line) >= MESSAGE for line in self.err.splitlines()):
            yield "unexpected", f"a message of {max(map(len, self.err.splitlines()))} characters: {lines[-1:]!r:.200}"
        elif any(ord(letter) < 32 for line in lines for letter in line):
            yield "unexpected", f"control characters in the message {self.err[-300:]!r}"
        if self.cpu_s > CPU_S and not self.ran_model:
            yield "slow", f"{self.cpu_s:.1f} s"
        if self.memory_kb > MEMORY_KB and not self.ran_model:
            yield "big", f"{self.memory_kb // 1000} MB"
        if self.written:
            yield "wrote outside", ", ".join(self.written)


def run(root: Path, command: str, patience_s: float = _HANG_S) -> Outcome:
    """Runs a command in the folder of the case, in a forked child."""
    report = root / "report.json"
    report.unlink(missing_ok=True)
    (root / "ran").unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = _child(root, command, report)
        finally:
            os._exit(code)
    deadline = time.monotonic() + patience_s
    status = None
    while status is None:
        done, value = os.waitpid(pid, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(value)
        elif time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        else:
            time.sleep(0.003)
    err = (root / "err").read_text(errors="replace")
    made = json.loads(report.read_text()) if report.exists() else {}
    return Outcome(command, status, err, ran_model=(root / "ran").exists(), **made)


def _child(root: Path, command: str, report: Path) -> int:
    case = root / "case"
    os.chdir(case)
    with open("/dev/null") as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    here = int(Path("/proc/self/statm").read_text().split()[0]) * 4096 + _ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (here, here))
    _watch_models(root / "ran")
    written = _watch_writes((str(case), *(str(root / name) for name in ("tmp", "cache", "report.json", "ran")), "/dev/"))
    before = _memory_kb("VmRSS")
    # The names of the files are those of the user's folder.
    sys.argv = ["growtas", *command.split()]
    begun = time.process_time()
    code: Any = 1
    try:
        main()
        code = 0
    except SystemExit as ending:
        code = ending.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 98
    sys.stdout.flush()
    sys.stderr.flush()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {
        "cpu_s": time.process_time() - begun + children.ru_utime + children.ru_stime,
        "memory_kb": _memory_kb("VmHWM") - before,
        "written": sorted(set(written)),
    }
    report.write_text(json.dumps(result))
    return int(code)


def _watch_models(mark: Path) -> None:
    """Creates a file once a model computes in this process."""
    import onnxruntime
    import openvino
    import torch
    import uvicorn

    def ran(*_: Any) -> None:
        mark.touch()

    torch.nn.modules.module.register_module_forward_pre_hook(ran)

    def marked(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def wrapper(*arguments: Any, **named: Any) -> Any:
            ran()
            return original(*arguments, **named)

        setattr(owner, name, wrapper)

    marked(onnxruntime.InferenceSession, "run")
    marked(openvino.InferRequest, "infer")
    marked(openvino.CompiledModel, "__call__")
    uvicorn.Server.run = lambda *arguments, **named: None  # loads the artifact and ends


def _watch_writes(allowed: tuple[str, ...]) -> list[str]:
    written: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str | bytes):
            return
        flags = arguments[2] or 0
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            path = os.path.realpath(os.path.abspath(os.fsdecode(arguments[0])))
            if not path.startswith(allowed):
                written.append(path)

    sys.addaudithook(hook)
    return written


def _memory_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def build(root: Path) -> None:
    """Makes good files of every kind in ``root/case``, and moves them to ``root/good``."""
    case = root / "case"
    case.mkdir()
    (case / "space.yaml").write_bytes(bad.yaml_bytes(TINY))
    (case / "recipe.yaml").write_text("space: space.yaml\nepochs: 1\nlr: 0.001\nmixup: 0.1\nmethod: growtas\nseed: 3\n")
    (case / "subnet.json").write_text('{"depth": 1, "embed_dim": 16, "num_heads": [1], "mlp_ratio": [1.0]}')
    done = run_all(
        root,
        "train --recipe digits-demo --space space.yaml --epochs 2 --name r --set search_images=64",
        "train --recipe digits-demo --space space.yaml --epochs 2 --name s --set search_images=64",
        "search runs/r --generations 2 --population 6 --max-params 1M",
        REPLAY,
        "export runs/r --format torch,program,onnx,openvino --images 64",
        "export runs/r --format onnx --precision int8 --name tiny-subnet.int8 --calibration-images 16 --images 64 "
        "--max-accuracy-drop 100 --max-error 9 --min-cosine 0 --min-agreement 0",
        "export runs/r --format onnx --images 16 --triton repo --out other",
        "bench runs/r --batch 1 --rounds 1 --seconds 0.01 --no-roofline",
        "report runs/r",
        "finetune runs/r --data digits --epochs 1 --name f",
        "train --init runs/r --space space.yaml --epochs 2 --name i --set search_images=64",
        f"train --teacher {E}.safetensors --space space.yaml --epochs 2 --name t --set search_images=64",
        "train --recipe digits-demo --space space.yaml --epochs 1 --name p --set search_images=64",
        "search runs/p --objective pareto --front accuracy,latency --device cpu --generations 1 --population 4",
        "profile --device cpu --space space.yaml --samples 6 --held-out 2 --repeats 1 --seconds 0.001 --out profiles/cpu.tiny.json",
        "devices",
    )
    for folder in ("home", "tmp"):
        shutil.rmtree(root / folder)
        (root / folder).mkdir()
    for outcome in done:
        if outcome.code:
            sys.stderr.write(f"{outcome.command}: exit code {outcome.code}: {outcome.err[-500:]}\n")
    in_child(lambda: _more(case))


def run_all(root: Path, *commands: str) -> list[Outcome]:
    return [run(root, command, 300) for command in commands]


def in_child(work: Callable[[], None]) -> None:
    """Runs a function in a forked child, so that this process never computes."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    os.waitpid(pid, 0)


def _more(case: Path) -> None:
    """Files that no command of growtas makes on this machine."""
    import numpy as np
    import timm
    import torch
    from PIL import Image

    from growtas import Supernet, load_space

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(case / "good.png")
    for label in "ab":
        (case / "photos" / label).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(case / "photos" / label / f"{number}.png")
    (case / "idx").mkdir()
    for stem, count in (("train", 60), ("t10k", 20)):
        pixels, labels = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8), (np.arange(count) % 10).astype(np.uint8)
        for name, head, data in (
            ("images-idx3", struct.pack(">HBB3I", 0, 8, 3, count, 28, 28), pixels),
            ("labels-idx1", struct.pack(">HBBI", 0, 8, 1, count), labels),
        ):
            (case / "idx" / f"{stem}-{name}-ubyte.gz").write_bytes(gzip.compress(head + data.tobytes()))
    torch.save({"model": Supernet(load_space(str(case / "space.yaml"))).state_dict()}, case / "m.pth")
    torch.save(timm.create_model("test_vit", num_classes=10).state_dict(), case / "teacher.pth")
    # A stopped run: the second epoch is gone.
    for name in ("s", "i", "t"):
        stopped = case / "runs" / name
        info = json.loads((stopped / "run.json").read_text())
        info.pop("test_accuracy", None)
        (stopped / "run.json").write_text(json.dumps({**info, "state": "interrupted", "process": None}))
        shutil.rmtree(stopped / "checkpoints" / "epoch-0002")
        best = next((stopped / "checkpoints").glob("best-*"))
        best.rename(best.with_name("best-epoch-0001"))
        lines = (stopped / "metrics.jsonl").read_text().splitlines()
        (stopped / "metrics.jsonl").write_text(lines[0] + "\n")
    # A plan is built only by TensorRT; no machine loads this one.
    plan = case / f"{E}.plan"
    plan.write_bytes(b"ftrt" + rng.bytes(4000))
    manifest = json.loads(Path(f"{case / E}.onnx.json").read_text())
    manifest |= {
        "kind": "plan",
        "runtime": "tensorrt",
        "plan": {"runtime": "tensorrt", "runtime_version": "10.0", "targets": ["sm86"], "max_batch": 8},
    }
    manifest["artifact"] = {"file": plan.name, "sha256": sha256(plan.read_bytes()).hexdigest(), "bytes": 4004}
    Path(f"{plan}.json").write_text(json.dumps(manifest))
    from growtas.latency.modelled import profile as modelled

    folder = Path(modelled.__file__).parents[3] / "profiles"
    source = folder / "a10.json"
    data = json.loads(source.read_text()) if source.exists() else {}
    (case / "profiles").mkdir(exist_ok=True)
    (case / "profiles" / "mine.json").write_text(json.dumps({**data, "name": "mine"}))


def cases(kind: Kind, good: Path, count: int | None, number: int) -> list[Mutation]:
    """The mutations of a kind, at most ``count``: a fifth of objects, damaged bytes and random values each, the rest typed."""
    rng = random.Random(f"{number} {kind.name}")
    content = (good / kind.file).read_bytes()
    groups = [list(bad.objects()), list(bad.damaged(content, rng)), list(kind.mutations(content))]
    if kind.document:
        groups.append(list(bad.documents()))
        if kind.file.endswith(".json"):
            groups.append(bad.random_values(json.loads(content), bad.json_bytes, 30, number))
    for group in groups:
        rng.shuffle(group)
    if count is None:
        return [mutation for group in groups for mutation in group]
    chosen: list[Mutation] = []
    while len(chosen) < count and any(groups):
        for index, group in enumerate(groups):
            # Half of the files are typed mutations.
            for _ in range(len(groups) if index == 2 else 1):
                if group:
                    chosen.append(group.pop())
    return chosen[:count]


def try_file(root: Path, kind: Kind, mutation: Mutation, commands: Sequence[str]) -> tuple[list[tuple[str, str]], bool, bool]:
    """Puts a bad file in place and runs commands; returns the faults, whether all accepted it, and whether a model ran."""
    faults: list[tuple[str, str]] = []
    accepted, ran = True, False
    for command in commands:
        case = root / "case"
        if case.exists():
            shutil.rmtree(case)
        shutil.copytree(root / "good", case, symlinks=True)
        path = case / kind.file
        before = sha256(path.read_bytes()).hexdigest()
        mutation[1](path)
        _record_hash(case, path, before)
        outcome = run(root, command)
        accepted, ran = accepted and outcome.code == 0, ran or outcome.ran_model
        faults += [(column, f"{command}: {reason}") for column, reason in outcome.faults()]
        if (root / "canary-ran").exists():
            faults.append(("code run", command))
            (root / "canary-ran").unlink()
        for folder in ("outside", "home", "tmp"):
            for left in (root / folder).iterdir():
                if left.name not in _EXPECTED and not (outcome.killed and folder == "tmp"):
                    faults.append(("wrote outside", f"{command}: {folder}/{left.name}"))
                if left.name != "secret":
                    shutil.rmtree(left, ignore_errors=True)
                    left.unlink(missing_ok=True)
    return faults, accepted, ran


def _record_hash(case: Path, path: Path, before: str) -> None:
    """Writes the bad file's hash where the good one's is recorded, as whoever made the file would."""
    if path.is_symlink() or not os.path.isfile(path) or path.stat().st_size > 10**8:
        return
    now = sha256(path.read_bytes()).hexdigest()
    for name in case.rglob("*.json"):
        if os.path.isfile(name) and name.stat().st_size < 10**6:
            content = name.read_bytes()
            if before.encode() in content:
                name.unlink()
                name.write_bytes(content.replace(before.encode(), now.encode()))


def warm_up() -> None:
    """Imports everything that the commands import, so that the children's time and memory are those of the files."""
    import growtas

    for package in pkgutil.walk_packages(growtas.__path__, "growtas."):
        if not package.name.endswith("__main__"):
            importlib.import_module(package.name)
    names = "timm torch._dynamo torch.export torch.export.passes matplotlib.pyplot matplotlib.backends.backend_agg "
    names += "onnx.shape_inference onnx_ir openvino "
    names += "onnxruntime uvicorn fastapi sklearn.datasets torchvision.transforms.v2 torch.onnx onnx.reference yaml PIL.ImageFile"
    for name in names.split():
        try:
            importlib.import_module(name)
        except ImportError:
            sys.stderr.write(f"{name} is not installed\n")
    from PIL import Image

    Image.init()
    gc.collect()
    gc.freeze()  # collections in the children would copy the memory of this process


def main_() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1500, help="Number of bad files (default: 1500); 0: all of them.")
    parser.add_argument("--sample", action="store_true", help="About a hundred files, in less than a minute.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the random choices (default: 0).")
    parser.add_argument("--kinds", nargs="*", help="Names of kinds to try, or their beginnings (default: all).")
    parser.add_argument(
        "--commands", type=int, default=2, help="Number of commands that each file is given to (default: 2); 0: all."
    )
    parser.add_argument("--keep", type=Path, help="Folder in which the good files are kept for the next call.")
    options = parser.parse_args()
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None, prefix="bad-files-") as name:
        root = Path(name)
        for folder in ("outside", "home", "tmp"):
            (root / folder).mkdir()
        (root / "outside" / "secret").write_text("secret")
        settings = {
            "HOME": root / "home",
            "TMPDIR": root / "tmp",
            "GROWTAS_CACHE": root / "cache",
            "GROWTAS_PROFILES": root / "case" / "profiles",
        }
        os.environ.update({key: str(value) for key, value in settings.items()} | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"})
        tempfile.tempdir = str(root / "tmp")
        warm_up()
        if options.keep and (options.keep / "runs").exists():
            shutil.copytree(options.keep, root / "good")
        else:
            build(root)
            (root / "case").rename(root / "good")
            if options.keep:
                shutil.copytree(root / "good", options.keep)
        report, failures = try_all(root, options)
    sys.stdout.write(
        json.dumps({"seed": options.seed, "kinds": report, "total": total(report), "failures": failures}, indent=1) + "\n"
    )
    sys.exit(bool(failures))


def total(report: dict[str, Counter[str]]) -> dict[str, int]:
    """The sums over all kinds."""
    return dict(sum(report.values(), Counter[str]()))


def try_all(root: Path, options: argparse.Namespace) -> tuple[dict[str, Counter[str]], list[str]]:
    """Tries the files of every kind; returns the counts by kind, and the failures."""
    kinds = [kind for kind in KINDS if not options.kinds or kind.name.startswith(tuple(options.kinds))]
    files = 100 if options.sample else options.files
    each = None if not files else max(1, round(files / len(kinds)))
    rng = random.Random(options.seed)
    report: dict[str, Counter[str]] = defaultdict(Counter)
    failures: list[str] = []
    for kind in kinds:
        if not (root / "good" / kind.file).is_file():
            failures.append(f"{kind.name}: there is no good file {kind.file}")
            continue
        counts = report[kind.name]
        # Commands that measure wait for a quiet machine.
        number_of_files = each if each is None or kind.name not in _MEASURED else max(1, each // 6)
        for mutation in cases(kind, root / "good", number_of_files, options.seed):
            commands = list(kind.commands)
            number = 1 if options.sample else options.commands or len(commands)
            faults, accepted, ran = try_file(root, kind, mutation, rng.sample(commands, min(number, len(commands))))
            counts["tried"] += 1
            counts["accepted" if accepted else "refused"] += 1
            counts["a model ran"] += ran
            for column in {column for column, _ in faults}:
                counts[column] += 1
            for column, reason in faults:
                failures.append(f"{kind.name}: {mutation[0]}: {column}: {reason}")
                sys.stderr.write(failures[-1][:700] + "\n")
                sys.stderr.flush()
        sys.stderr.write(f"{kind.name}: {json.dumps(counts)}\n")
        sys.stderr.flush()
    return report, failures


if __name__ == "__main__":
    main_()
