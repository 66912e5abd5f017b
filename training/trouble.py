"""Training failures, and what the user can do about them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from utils.environment import device_name

MOST_NAMED = 8  # subjects named in a message


class NotFinite(Exception):
    """A loss is NaN or infinite; stops a training."""


def subjects_to_blame(task, training, validation, subjects):
    """Find the subjects of the first batch whose loss is not finite.

    The batches of the epoch are repeated from the state at its start: each is a function of seed, epoch and step, so
    the failure is reproduced.

    Args:
        task: Compiled `Task`, in that state.
        training: `Batches` of the epoch.
        validation: `Batches`, checked if all training batches are finite; None if there are none.
        subjects: Subject of each row of the training and of the validation slices, two sequences; None: not known.

    Returns:
        Continuation of a message, ` with slices of sub-01, sub-02 (step 3)`; empty if nothing is found.
    """
    parts = ((training, task.train_on_batch), (validation, task.test_on_batch))
    for part, (batches, step_on) in enumerate(parts):
        if batches is None:
            continue
        task.reset_metrics()
        for step in range(batches.steps):
            loss = step_on(batches.batch(step), return_dict=True)["loss"]
            if not np.isfinite(float(loss)):
                return _described(batches, step, subjects[part] if subjects else None)
    return ""


def _described(batches, step, subjects):
    where = f"step {step + 1} of {batches.steps}"
    if subjects is None:
        return f" ({where})"
    names = sorted({str(subjects[row]) for row in batches.sources(step)})
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f" with slices of {', '.join(names[:MOST_NAMED])}{more} ({where})"


def is_out_of_memory(error: Exception) -> bool:
    """True for the errors that TensorFlow, JAX, PyTorch and Python raise when memory runs out."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "ResourceExhaustedError", "OutOfMemoryError"}:
        return True
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def out_of_memory(batches: Any, input_shape: Sequence[int]) -> str:
    """Say what did not fit into memory and what to lower."""
    device = device_name()
    size = " x ".join(str(length) for length in input_shape[1:-1])
    where = "this machine" if device == "cpu" else f"the device ({device})"
    return (
        f"{where} has too little memory for batches of {batches.batch_size} images of {size} with "
        f"{input_shape[-1]} channels; lower training.batch_size, the image or crop size or network.filters, switch "
        "training.mixed_precision on, or set data.resident to never"
    )
