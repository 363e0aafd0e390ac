"""Requests beside floods, slow senders and a restart; ``python -m tests.evidence.soak`` sends more of them."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and the state of connections")
def test_no_request_is_lost_beside_floods_and_a_restart():
    command = [sys.executable, "-m", "tests.evidence.soak", "--requests", "400", "--restarts", "1"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["right"], report["wrong"], report["lost"], report["tracebacks"]) == (400, 0, 0, 0)
    assert report["exit_codes"] == [0, 0]
    assert all(report["other_connections"].values())
