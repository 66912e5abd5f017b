import keras
import numpy as np
import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    """Spare TensorFlow's rewriting of graphs, a fifth of a small training; whoever runs a script trains with it."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


@pytest.fixture(scope="module")
def slices():
    """Images whose brightness follows the class of a coarse map, with noise; `(images, maps)`."""
    generator = np.random.default_rng(0)
    maps = generator.integers(0, 4, (16, 4, 4)).repeat(4, axis=1).repeat(4, axis=2)
    images = maps[..., None] / 4 + generator.normal(0, 0.1, (16, 16, 16, 1))
    return images.astype("float32"), maps.astype("int32")
