import numpy as np
import pytest


@pytest.fixture(scope="module")
def slices():
    """Return images whose brightness follows the class of a coarse map, with noise; `(images, maps)`."""
    generator = np.random.default_rng(0)
    maps = generator.integers(0, 4, (16, 4, 4)).repeat(4, axis=1).repeat(4, axis=2)
    images = maps[..., None] / 4 + generator.normal(0, 0.1, (16, 16, 16, 1))
    return images.astype("float32"), maps.astype("int32")
