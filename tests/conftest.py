import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory):
    """Tests neither read nor fill the user's cache of decoded images and the user's measured profiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROWTAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("GROWTAS_PROFILES", str(tmp_path_factory.mktemp("profiles")))
        yield
