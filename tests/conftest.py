import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Tests neither read nor fill the user's cache of decoded images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROWTAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
