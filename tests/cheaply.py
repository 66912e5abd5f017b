"""Uncompiled training steps and coarse figures, for tests that do not depend on them.

Tracing a training step costs 4 to 6 s of CPU; running one eagerly costs about 0.2 s, which pays off for tests with a
dozen steps or fewer, or predictions of a few batches. A report costs 5 s, mostly for embedding fonts and for pixels;
nine tenths of step 1 are spent on pictures. Compiled steps are tested in test_pipeline.py, tests/training
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
    """In this context, and in forks made in it, figures have few pixels and pictures of step 1 one panel."""
    with (
        mock.patch.dict(figures.STYLE, COARSE),
        mock.patch.object(quality_control, "draw_constraint_map", draw_classes_alone),
    ):
        yield


def draw_classes_alone(path, volume, names, details, affine, title):
    """Stand in for `quality_control.draw_constraint_map`: compute all panels, but write only the last one."""
    from PIL import Image

    _, classes, _ = quality_control._panels(volume, names, details, affine)
    with atomic_path(path) as temporary:
        Image.fromarray(classes.astype("uint8")).save(temporary)


@contextlib.contextmanager
def steps_uncompiled(uncompiled=True):
    """Let TensorFlow compile nothing in this context, nor in forks of this process; other backends are unchanged.

    Args:
        uncompiled: False compiles again inside an uncompiled context.
    """
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        yield
        return
    import tensorflow

    before = tensorflow.config.functions_run_eagerly()
    tensorflow.config.run_functions_eagerly(uncompiled)
    try:
        with warnings.catch_warnings():  # about the reading of data, which it compiles anyway
            warnings.filterwarnings("ignore", message="Even though the .*run_functions_eagerly")
            yield
    finally:
        tensorflow.config.run_functions_eagerly(before)
