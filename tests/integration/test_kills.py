"""A training that is killed or stopped at random moments and continued ends as one that wasn't.

``make evidence-kills`` and ``make evidence-stops`` do it more often.
"""

import json
import os
import subprocess
import sys

import pytest

SPACE = (
    "{name: tiny, embed_dim: [8, 16], num_heads: [1, 2], mlp_ratio: [1, 2], depth: [1, 2], head_dim: 8, image_size: 8, "
    "patch_size: 4, max_relative_position: 1}"
)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="trains in forked children")
def test_killed_and_continued_to_the_bit(tmp_path):
    (tmp_path / "tiny.yaml").write_text(SPACE)
    options = {"ema_decay": 0.99, "mixup": 0.2, "drop_path": 0.1, "method": "focusformer"}
    options["method_options"] = {"every": 7, "samples": 2, "images": 50}
    command = [sys.executable, "-m", "tests.evidence.kills", str(tmp_path / "runs"), "--space", str(tmp_path / "tiny.yaml")]
    done = subprocess.run(
        [*command, "--kills", "6", "--options", json.dumps(options)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["kills"] == 6
    assert report["tensors"] > 100
    assert (report["different"], report["same_records"]) == ([], True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="trains in forked children, which talk over gloo")
@pytest.mark.parametrize(("steps", "processes"), [(1, 1), (1, 2), (2, 2), (50, 1)])
def test_stopped_and_continued_to_the_bit(tmp_path, steps, processes):
    (tmp_path / "tiny.yaml").write_text(SPACE)
    command = [sys.executable, "-m", "tests.evidence.stops", str(tmp_path / "stops"), "--moments", "4"]
    command += ["--steps", str(steps), "--processes", str(processes)]
    options = ["--space", str(tmp_path / "tiny.yaml"), "--ema", "0.99", "--set", "mixup=0.2", "--set", "drop_path=0.1"]
    done = subprocess.run(
        [*command, *options], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["stops"], report["wrong"], report["different"], report["same_records"]) == (4, [], [], True)
    assert report["tensors"] > 100
