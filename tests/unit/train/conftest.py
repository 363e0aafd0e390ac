import pytest

TINY = """
name: tiny
embed_dim: [8, 16]
num_heads: [1, 2]
mlp_ratio: [1, 2]
depth: [1, 2]
head_dim: 8
image_size: 8
patch_size: 4
num_classes: 10
max_relative_position: 1
"""


@pytest.fixture
def tiny(tmp_path):
    """A space file small enough to be trained on digits in a second an epoch."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path)
