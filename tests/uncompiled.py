"""Training steps run operation by operation instead of compiled, for tests of what happens around the steps.

Tracing a step costs 4 to 6 s of CPU, and a few steps of a tiny network cost less than one. Compiled steps are tested in
test_pipeline.py, tests/training and test_backends.py.
"""

import contextlib
import os


@contextlib.contextmanager
def steps_uncompiled():
    """Have TensorFlow compile nothing inside, in forks of this process neither; other backends compile as ever."""
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        yield
        return
    import tensorflow

    tensorflow.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tensorflow.config.run_functions_eagerly(False)
