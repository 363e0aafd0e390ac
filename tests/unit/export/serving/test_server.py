from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from growtas.export.serving import server
from growtas.export.serving.options import ServeOptions
from growtas.progress import SILENT
from tests.unit.export.serving.helpers import artifact


@pytest.mark.parametrize(("number", "end"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_while_the_artifact_is_loaded_ends_the_server_before_it_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, end: type[BaseException]
) -> None:
    def signalled(*args: object, **kwargs: object) -> None:
        os.kill(os.getpid(), number)
        raise AssertionError("the signal was not heard")

    monkeypatch.setattr(server, "Predictor", signalled)
    before = signal.getsignal(number)
    with pytest.raises(end) as caught:
        server.run_server(artifact(tmp_path), ServeOptions(port=0), SILENT)
    assert end is KeyboardInterrupt or caught.value.code == 0
    assert signal.getsignal(number) == before
