"""Steps without compiler, figures without detail: for tests of what happens around these.

Tracing a training step costs 4 to 6 s of CPU, running one operation by operation about 0.2 s: that pays where a test
takes a dozen steps or fewer, and where predicting takes a few batches. A report costs 5 s, most of it for embedding
fonts and for pixels; of step 1 nine tenths are pictures. Compiled steps are tested in test_pipeline.py, tests/training
and test_backends.py, figures as readers get them in tests/evaluation, pictures of step 1 there and in test_pipeline.py.
"""

import contextlib
import os
import warnings
from unittest import mock

from evaluation.pictures import quality_control
from evaluation.report import figures
from utils.runs import atomic_path

COARSE = {"savefig.dpi": 50, "pdf.use14corefonts": True}


@contextlib.contextmanager
def coarse_figures():
    """A context in which, and in forks made inside it, figures have few pixels and pictures of step 1 one panel."""
    with (
        mock.patch.dict(figures.STYLE, COARSE),
        mock.patch.object(quality_control, "draw_constraint_map", draw_classes_alone),
    ):
        yield


def draw_classes_alone(path, volume, names, details, affine, title):
    """Stand in for `quality_control.draw_constraint_map`: all panels are computed, the last one is written."""
    from PIL import Image

    _, classes, _ = quality_control._panels(volume, names, details, affine)
    with atomic_path(path) as temporary:
        Image.fromarray(classes.astype("uint8")).save(temporary)


@contextlib.contextmanager
def steps_uncompiled(uncompiled=True):
    """Have TensorFlow compile nothing inside, in forks of this process neither; other backends compile as ever.

    Args:
        uncompiled: False compiles inside, in the midst of what runs uncompiled.
    """
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        yield
        return
    import tensorflow

    before = tensorflow.config.functions_run_eagerly()
    tensorflow.config.run_functions_eagerly(uncompiled)
    try:
        with warnings.catch_warnings():  # that it compiles how data are read nevertheless: a line on stderr
            warnings.filterwarnings("ignore", message="Even though the .*run_functions_eagerly")
            yield
    finally:
        tensorflow.config.run_functions_eagerly(before)
