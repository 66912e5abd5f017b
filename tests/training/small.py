"""Shared parts of small training runs."""

import functools
from dataclasses import replace

import keras
import pytest

from losses.constrained_contrastive import constrained_contrastive_loss
from losses.segmentation import segmentation_loss
from models.unet import build_unet
from training import pretraining
from training.augmentation import Changes
from training.effective import PatchCounts
from training.finetuning import SegmentationTrainer
from training.loop import RunOptions
from training.pretraining import Decoder, Images, Patches, Setup, pretrain_constrained
from training.schedules import Schedule
from training.steps import Task

FILTERS = [4, 8]
LOSS = functools.partial(constrained_contrastive_loss, temperature=0.1)
PATCHES, COUNTS, ALL = Decoder(None, 8, patch_size=4), PatchCounts(nearest=20, anchors=5), Patches()
STILL = Changes()


def settings(epochs=3, steps=4, rate=1e-2, **more):
    """Return a schedule with small batches."""
    return Schedule(epochs, rate, 4, steps, **({"plateau_epochs": 2} | more))


def run_in(folder, seed=1, **options):
    """Return the options of a run that is saved in a folder."""
    return RunOptions(folder, "hash", "test", seed, **options)


def setup_in(folder, schedule, filters=FILTERS, warm_start=None, **options):
    """Return the settings that all pretraining methods share; `options` are those of `run_in`."""
    return Setup(filters, schedule, run_in(folder, **options), warm_start)


def constrained(slices, folder, *, decoder=PATCHES, counts=COUNTS, patches=ALL, **setup):
    """Pretrain with constrained contrast; the first six slices are the validation set."""
    images, maps = slices
    sets = Images(images, maps), Images(images[:6], maps[:6])
    return pretrain_constrained(*sets, LOSS, decoder, counts, patches, setup_in(folder, **setup))


def segmentation_trainer(schedule, augmentation=STILL, loss=segmentation_loss, fresh_levels=0, remat=False, **network):
    """Return a trainer of networks for slices of 16 x 16 pixels and two classes, unless `network` is given."""
    shape = network.pop("shape", (16, 16, 1))
    build = functools.partial(build_unet, shape, **({"filters": FILTERS, "outputs": 2} | network))
    settings_of = {"augmentation": augmentation, "schedule": schedule, "fresh_levels": fresh_levels, "remat": remat}
    return SegmentationTrainer(build, loss, **settings_of)


class SharedSteps:
    """Lets pretraining runs that differ in data, seed, rate or length share one compiled step, like finetuning cells.

    Compiling takes most of a small run. Each run starts from the weights of its own network, `fit` resets the moments
    of the previous run, and each returns a separate network.
    """

    def __init__(self):
        self.tasks = {}

    def of(self, function):
        """Return the same function with compiled steps shared between calls."""
        train = pretraining._train

        @functools.wraps(function)
        def call(*arguments, **options):
            with pytest.MonkeyPatch.context() as context:
                context.setattr(pretraining, "_train", functools.partial(self.train, train))
                return function(*arguments, **options)

        return call

    def train(self, train, task, batches, setup):
        """Stand in for `pretraining._train`."""
        if setup.warm_start:
            setup.warm_start(task.network)
        start, result = task.network.get_weights(), keras.models.clone_model(task.network)
        task = self.tasks.setdefault(what_is_compiled(task), task)
        try:
            network, history = train(task, batches, replace(setup, warm_start=lambda own: own.set_weights(start)))
        finally:
            task.ready = lambda rate: task  # already compiled; `fit` sets the rate
        result.set_weights(network.get_weights())
        return result, history


def what_is_compiled(task):
    """Describe the computation of a task: its network, the trained part, and what is specific to the task."""
    own = {name: value for name, value in vars(task).items() if name not in vars(Task(task.network))}
    return type(task), task.network.to_json(), tuple(weight.path for weight in task.trainable_variables), repr(own)
