import signal

import pytest

from growtas.latency import at_hand


def pytest_configure():
    """Shells let programs that they start in the background ignore Ctrl-C, and so would all that the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_gpu_at_hand(request, monkeypatch):
    """Tests mean a machine without a GPU, whatever machine they run on, unless they are marked for one."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(at_hand, "gpu_name", lambda: None)


@pytest.fixture(autouse=True)
def _signals_stay():
    """A command that ends leaves handlers that end its process at once; here it shares the process with the tests."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory):
    """Tests neither read nor fill the user's cache of decoded images and the user's measured profiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROWTAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("GROWTAS_PROFILES", str(tmp_path_factory.mktemp("profiles")))
        yield
