"""What small trainings share."""

import functools

import keras
import pytest

from training import pretraining
from training.pretraining import pretrain_constrained
from training.steps import Task

FILTERS = [4, 8]
RUN = {"warm_start": lambda network: None, "tag": "hash", "name": "test", "seed": 1, "filters": FILTERS, "features": 8}
LOSS = {"temperature": 0.1, "nearest_patches": 20, "comparison": "pairwise", "anchor_is_positive": True}


def settings(epochs=3, steps=4, rate=1e-2):
    return {
        "epochs": epochs,
        "steps_per_epoch": steps,
        "batch_size": 4,
        "learning_rate": rate,
        "plateau_epochs": 2,
        "mixed_precision": False,
    }


def constrained(slices, folder, *, training, decoder_levels=None, patch_size=4, **changes):
    images, maps = slices
    settings_of = {"decoder_levels": decoder_levels, "patch_size": patch_size, "anchors_per_slice": 5}
    settings_of |= {"loss_settings": LOSS, "training": training, "folder": folder}
    return pretrain_constrained(images, maps, images[:6], maps[:6], **(settings_of | RUN | changes))


class SharedSteps:
    """Lets pretrainings that differ by data, seed, rate or length share one compiled step, as cells of finetuning do.

    Compiling costs most of a small training. Each training starts from the weights of its own network, `fit` forgets
    the moments of the one before, and each returns a network of its own.
    """

    def __init__(self):
        self.tasks = {}

    def of(self, function):
        """Return the same function, whose calls share their compiled steps."""
        train = pretraining._train

        @functools.wraps(function)
        def call(*arguments, **options):
            with pytest.MonkeyPatch.context() as context:
                context.setattr(pretraining, "_train", functools.partial(self.train, train))
                return function(*arguments, **options)

        return call

    def train(self, train, task, batches, training, *, warm_start, **run):
        """Stand in for `pretraining._train`."""
        warm_start(task.network)
        start, result = task.network.get_weights(), keras.models.clone_model(task.network)
        task = self.tasks.setdefault(what_is_compiled(task), task)
        try:
            network, history = train(task, batches, training, warm_start=lambda own: own.set_weights(start), **run)
        finally:
            task.ready = lambda rate: task  # it is, and `fit` sets the rate
        result.set_weights(network.get_weights())
        return result, history


def what_is_compiled(task):
    """Describe the computation of a task: its network, what of it is trained, and what the task adds to any other."""
    own = {name: value for name, value in vars(task).items() if name not in vars(Task(task.network))}
    return type(task), task.network.to_json(), tuple(weight.path for weight in task.trainable_variables), repr(own)
