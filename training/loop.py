"""The training loop around `keras.Model.fit`: best and last weights, learning rates, history, and resuming.

What happens in one update, and where:

    batches.Batches              draws rows and random changes; arrays that fit are already on the device
      -> steps.Task.train_step   one batch, or several in one dispatch
        -> tasks.*.forward       reads and augments the images, runs the network
        -> tasks.*.cost          gathers the outputs of all devices, computes the loss that the script bound
        -> keras                 gradients, Adam (optimizers.LayerwiseAdam if rates differ between layers)
    Keeper.on_epoch_end          history, best weights, plateau; health.py warns, checkpoint.py writes
"""

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from models.weights import save_weights
from training.batches import Batches, fed
from training.checkpoint import Progress, read_checkpoint, text_of, write_checkpoint, write_history
from training.health import warn_at_the_end, warn_when_crossing
from training.optimizers import reset_optimizer, set_scales
from training.schedules import Schedule
from training.steps import Task
from training.tensorboard import TensorBoard
from training.tracking import MLflow
from training.trouble import NotFinite, is_out_of_memory, out_of_memory, subjects_to_blame
from utils.checks import InputError
from utils.interrupts import stop_if_asked
from utils.runs import CHECKPOINT, bar, time_left

log = logging.getLogger("mrccl")

CURE = "lower learning_rate, switch mixed_precision off, or look at their scans; the last good epoch is kept"
SECONDS_BETWEEN_CHECKPOINTS = 20.0  # most work that a kill can cost; writing more often would slow small networks


@dataclass(frozen=True)
class RunOptions:
    """Settings of one training run: where it is stored and resumed, its seed, and where its progress is shown.

    Attributes:
        folder: Run folder.
        tag: Text that identifies the run by what it is made from; a checkpoint with another tag is not resumed.
        name: Name of the run in messages.
        seed: Seed of everything that the training draws.
        subjects: Subject of each row of the training and of the validation slices, two sequences, for messages; None:
            not known.
        with_bar: Show a progress bar of epochs; off where a bar of runs is already shown.
        with_tensorboard: Also write events for TensorBoard, into `tensorboard/` in the run folder.
        with_mlflow: Also send every epoch to MLflow, to the open run.
    """

    folder: Path
    tag: str
    name: str
    seed: int
    subjects: tuple[Sequence[str], Sequence[str]] | None = None
    with_bar: bool = False
    with_tensorboard: bool = False
    with_mlflow: bool = False


def fit(
    task: Task,
    training: Batches,
    validation: Batches | None,
    schedule: Schedule,
    run: RunOptions,
    fresh: Collection[str] = (),
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> list[dict[str, Any]]:
    """Train a task, or resume training it, and leave it with the weights to keep: the best or the last ones.

    Writes `history.csv`, `weights_last.npz` and `checkpoint.npz` into the run folder; the caller drops the checkpoint
    once the result is written.

    Args:
        task: Compiled `keras.Model` with an attribute `network`, whose weights are kept.
        training: `Batches` of the training slices.
        validation: `Batches` of the validation slices, fixed; None if there are none, which the schedule must allow.
        schedule: Epochs, learning rates, and which weights are kept.
        run: Which run this is.
        fresh: Names of the layers that are not pretrained, which the head phase trains.
        callbacks: Further callbacks, which must only observe.

    Returns:
        History, a list with one dictionary per epoch.

    Raises:
        InputError: The loss is no longer finite, or the device runs out of memory.
    """
    keeper, epochs = Keeper(task, training, schedule, run, fresh), schedule.epochs
    reset_optimizer(task.optimizer, schedule.learning_rate)
    start = keeper.resume()
    keeper.remember()
    if run.with_bar:
        keeper.advance = bar(run.name, epochs - start)
    if run.with_tensorboard:
        callbacks = [*callbacks, TensorBoard(run.folder, validation, epochs, start)]
    if run.with_mlflow:
        callbacks = [*callbacks, MLflow(keeper.history)]
    try:
        if start < epochs:
            task.fit(
                fed(training),
                validation_data=None if validation is None else fed(validation),
                validation_freq=schedule.evaluate_every,
                initial_epoch=start,
                epochs=epochs,
                shuffle=False,  # the batches are already shuffled, by seed and epoch
                verbose=0,
                callbacks=[keeper, *callbacks],
            )
    except KeyboardInterrupt:
        keeper.save()
        raise
    except NotFinite as error:
        keeper.save()
        keeper.restore()
        keeper.prepare(len(keeper.history))
        training.epoch = keeper.epoch_of_batches  # Keras has already advanced to the next one
        blamed = subjects_to_blame(task, training, validation, run.subjects)
        raise InputError(f"{run.name}: {error}{blamed}; {CURE}") from None
    except Exception as error:
        if is_out_of_memory(error):
            raise InputError(f"{run.name}: {out_of_memory(training, task.network.input_shape)}") from None
        raise
    keeper.finish()
    return keeper.history


class Keeper(keras.callbacks.Callback):
    """Keeps weights, state and history of a training, and sets its learning rate."""

    def __init__(self, task: Task, training: Batches, schedule: Schedule, run: RunOptions, fresh: Collection[str] = ()):
        super().__init__()
        self.task, self.training, self.schedule, self.run = task, training, schedule, run
        self.fresh = frozenset(fresh)
        self.progress = Progress(run.tag)
        self.best_values: list[np.ndarray] | None = None
        # As of the end of the last good epoch: all variables and, unless at the start, progress and best weights.
        self.state: list[np.ndarray] = []
        self.kept: tuple[str, list[np.ndarray] | None] | None = None
        self.advance = lambda note="": None
        self.checkpoint = run.folder / CHECKPOINT
        self.saved_at = self.epoch_started = time.monotonic()

    @property
    def history(self) -> list[dict[str, Any]]:
        """One dictionary per epoch."""
        return self.progress.history

    def resume(self) -> int:
        """Restore an unfinished run; return the number of epochs it has already completed."""
        if not self.checkpoint.exists():
            return 0
        progress, self.state, best = read_checkpoint(self.checkpoint)
        if progress.tag != self.run.tag:
            log.info("%s: the config changed since the checkpoint; starting again", self.run.name)
            return 0
        self.restore()
        self.progress = progress
        if progress.best_epoch and self.schedule.keep == "best":
            self.best_values = best
        done = self.training.epoch = len(self.history)
        log.info("%s: resuming after epoch %d of %d", self.run.name, done, self.schedule.epochs)
        return done

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch_started, self.epoch_of_batches = time.monotonic(), self.training.epoch
        self.prepare(epoch)

    def prepare(self, epoch):
        """Set the learning rate of an epoch, counted from 0, and its factors by layer."""
        optimizer, schedule = self.task.optimizer, self.schedule
        if 0 < epoch == schedule.head_epochs:  # discard the moments of frozen weights and of another rate
            reset_optimizer(optimizer, schedule.learning_rate)
        if (rate := schedule.rate(epoch)) is not None:
            optimizer.learning_rate.assign(rate)
        if schedule.is_layerwise:
            set_scales(self.task, schedule, epoch, self.fresh)

    def on_epoch_end(self, epoch, logs=None):
        # The health of anchors is measured on the validation set only; its training columns would be zeros.
        row = {key: float(value) for key, value in logs.items() if key == "loss" or key.startswith("val_")}
        if not np.isfinite([row["loss"], row.get("val_loss", 0.0)]).all():
            which, value = ("", row["loss"]) if not np.isfinite(row["loss"]) else ("validation ", row["val_loss"])
            raise NotFinite(f"the {which}loss became {value} in epoch {epoch + 1}")
        rate = float(keras.ops.convert_to_numpy(self.task.optimizer.learning_rate))
        seconds = time.monotonic() - self.epoch_started
        self.history.append({"epoch": epoch + 1, **row, "learning_rate": rate, "seconds": round(seconds, 3)})
        if "val_loss" in row:
            self._judge(row["val_loss"], epoch + 1, rate)
            warn_when_crossing(self.run.name, self.progress.measured)
        self._report(epoch + 1, row)
        self.advance(f"loss {row['loss']:.4f}")
        self.remember()
        if time.monotonic() - self.saved_at > SECONDS_BETWEEN_CHECKPOINTS and epoch + 1 < self.schedule.epochs:
            self.save()
        stop_if_asked()

    def _judge(self, loss, epoch, rate):
        """Keep the best weights, or halve the rate on a plateau."""
        progress = self.progress
        if loss < progress.best:
            progress.best, progress.best_epoch, progress.waited = loss, epoch, epoch
            if self.schedule.keep == "best":
                self.best_values = _copied(self.task.network.weights)
        elif self.schedule.halves_after(epoch, progress.waited):
            progress.waited = epoch
            self.task.optimizer.learning_rate.assign(rate / 2)

    def _report(self, epoch, row):
        epochs = self.schedule.epochs
        every = max(1, epochs // 10)
        if epoch % every == 0 or epoch == epochs:
            values = "  ".join(f"{key} {value:.4f}" for key, value in row.items())
            lately = [past["seconds"] for past in self.history[-every:]]
            left = (epochs - epoch) * sum(lately) / len(lately)
            note = f"  {time_left(left)}" if left else ""
            log.info("%s: epoch %d/%d  %s%s", self.run.name, epoch, epochs, values, note)

    def _variables(self):
        return [*self.task.network.weights, *self.task.optimizer.variables]

    def remember(self):
        """Copy everything that a resumed run needs at the end of an epoch."""
        self.state = _copied(self._variables())
        self.kept = (text_of(self.progress), self.best_values) if self.history else None

    def restore(self):
        """Restore the variables at the end of the last good epoch."""
        for variable, value in zip(self._variables(), self.state, strict=True):
            variable.assign(value)

    def save(self):
        """Write the state at the end of the last good epoch to one file, atomically."""
        if self.kept is None:
            return
        progress, best = self.kept
        if self.schedule.keep == "best":
            # Before the first evaluation on the validation set, the best weights are the last ones.
            best = best or self.state[: len(self.task.network.weights)]
        write_checkpoint(self.checkpoint, progress, self.state, best)
        self.saved_at = time.monotonic()

    def finish(self):
        """Write the last weights and the history, and load the weights to keep into the network."""
        folder = self.run.folder
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.task.network, folder / "weights_last.npz")
        if measured := self.progress.measured:
            kept = self.history[self.progress.best_epoch - 1] if self.schedule.keep == "best" else measured[-1]
            warn_at_the_end(self.run.name, kept, measured[-1])
        write_history(folder / "history.csv", self.history)
        self.save()  # kept until the caller has written the result, so that no training is lost if killed
        if self.best_values is not None:
            self.task.network.set_weights(self.best_values)


def _copied(variables):
    """Copies of the values of variables, as numpy arrays."""
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
