import signal

import pytest


def pytest_configure():
    """Shells let programs that they start in the background ignore Ctrl-C, and so would all that the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory):
    """Tests neither read nor fill the user's cache of decoded images and the user's measured profiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROWTAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("GROWTAS_PROFILES", str(tmp_path_factory.mktemp("profiles")))
        yield
