from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder for the user's own profiles: those of whoever runs the tests must not be found."""
    path = tmp_path / "profiles"
    path.mkdir()
    monkeypatch.setenv("GROWTAS_PROFILES", str(path))
    return path


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Seconds that were waited for before something was measured again; no test really waits."""
    seconds = []
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds
