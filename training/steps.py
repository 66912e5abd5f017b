"""One step of training on every backend: a network with its loss, slices on the device, several steps per dispatch."""

from collections.abc import Mapping

import keras
import numpy as np
from keras import ops

from models.remat import rematerialised
from training.devices import gathered, has_accelerator, replicas, share_of_loss, shared_out
from training.optimizers import LayerwiseAdam


class Task(keras.Model):
    """A network in training; only `network` is kept afterwards.

    Args:
        network: The `keras.Model` to train.
        health: Names of the values that `watch` logs, as means over the validation set.
    """

    def __init__(self, network, health=(), **kwargs):
        # Half precision applies to the network's layers; augmentation and positions are computed in float32.
        super().__init__(dtype="float32", **kwargs)
        self.network, self._rematerialised, self._tables = network, None, Tables()
        self.health = {name: keras.metrics.Mean(name) for name in health}
        self.built = True  # otherwise Keras would call the task with batches of several steps to infer its shapes

    def sparing_memory(self, remat: bool = True) -> "Task":
        """Compute activations twice instead of keeping them, if `remat`; return the task itself."""
        self._rematerialised = rematerialised(self.network) if remat else None
        return self

    def run(self, images, training):
        """Return the output of the network for images."""
        return (self._rematerialised or self.network)(images, training=training)

    def hold(self, training: Mapping[str, np.ndarray], validation: Mapping[str, np.ndarray]) -> None:
        """Put arrays on the device once; batches then refer to their slices by `rows` instead of carrying them.

        New arrays of the same shapes replace the old ones without recompilation.

        Args:
            training: Name to array `(N, ...)`, of the training batches; empty: the batches contain everything.
            validation: The same for the validation batches; an array in both is stored once.
        """
        if not self._tables.fill({True: training, False: validation}):
            self.train_function = self.test_function = None  # these were compiled for other arrays

    @property
    def non_trainable_variables(self):
        # Listed here, the tables reach JAX as arguments of its steps, not as constants.
        return [*super().non_trainable_variables, *self._tables.variables()]

    def read(self, batch, name, training):
        """Return one array of a batch, `(B, ...)`: from the batch, or from the device; images as float32."""
        if name in batch:
            return batch[name]
        values = ops.take(self._tables[bool(training)][name], batch["rows"], axis=0)
        return ops.cast(values, "float32") if keras.backend.is_float_dtype(values.dtype) else values

    def train_step(self, *state_and_data):
        """Train on one batch, or on several in sequence, in one dispatch to the device."""
        return self._each(super().train_step, *state_and_data)

    def test_step(self, *state_and_data):
        """Like `train_step`, for validation."""
        return self._each(super().test_step, *state_and_data)

    def _each(self, step, *state_and_data):
        """Step through the batches stacked under `steps` by `Batches`; JAX passes its state and expects it back."""
        *states, (batch, *_) = state_and_data
        if "steps" not in batch:
            return step(*state_and_data)
        if not states:  # variables change in place
            count = ops.shape(next(iter(batch["steps"].values())))[0]
            ops.fori_loop(0, count, lambda number, done: self._step_number(step, batch["steps"], number, done), 0)
            return self.get_metrics_result()
        trained, fixed, *others = states[0]  # networks here do not change non-trainable variables

        def one_step(carry, one):
            logs, (trained, _, *others) = step((carry[0], fixed, *carry[1]), (one,))
            return (trained, others), logs

        (trained, others), logs = ops.scan(one_step, (trained, others), batch["steps"])
        return keras.tree.map_structure(lambda values: values[-1], logs), (trained, fixed, *others)

    def _step_number(self, step, batches, number, done):
        step(({name: values[number] for name, values in batches.items()},))
        return done

    def ready(self, learning_rate: float, *, is_layerwise: bool = False) -> "Task":
        """Compile with Adam, or with `LayerwiseAdam`, whose rate differs between weights; return the task itself."""
        # On a CPU, XLA's convolutions are slower than TensorFlow's own (oneDNN); on a GPU and on JAX, XLA is faster.
        is_slow = keras.backend.backend() == "tensorflow" and not has_accelerator()
        is_possible = replicas() == 1  # XLA cannot compile a step of several TensorFlow devices
        optimizer = (LayerwiseAdam if is_layerwise else keras.optimizers.Adam)(learning_rate)
        self.compile(optimizer, jit_compile="auto" if is_possible and not is_slow else False)
        self.optimizer.build(self.trainable_variables)
        return self

    def watch(self, training, health, *tensors):
        """Log `health(*tensors)` for a batch of the fixed validation set, with equal weight for each slice."""
        if training:
            return
        tensors = gathered(*tensors)
        for name, value in health(*tensors).items():
            self.health[name].update_state(value, sample_weight=ops.cast(ops.shape(tensors[0])[0], "float32"))

    def call(self, batch, training=None):
        if replicas() == 1 or training:
            return self.forward(shared_out(batch), training)
        # At the end of a validation set, a device may have no slices, on which TensorFlow's convolutions fail.
        one_more = {key: ops.concatenate([x, ops.zeros((1, *x.shape[1:]), x.dtype)]) for key, x in batch.items()}
        return keras.tree.map_structure(lambda x: x[:-1], self.forward(one_more, training))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return share_of_loss(self.cost(x, y_pred, training))

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # To infer shapes, Keras would average a batch over TensorFlow's devices, which fails for booleans.
        pass


class Tables:
    """Arrays on the device, by `training` (True or False) and name. A plain class, which Keras does not track."""

    def __init__(self):
        self._layout, self._variables, self._by_part = None, [], {True: {}, False: {}}

    def __getitem__(self, training):
        return self._by_part[training]

    def variables(self):
        """Each variable once."""
        return self._variables

    def fill(self, parts):
        """Replace the arrays, by part and name; return whether the variables could be reused."""
        places = [(part, name, array) for part, arrays in parts.items() for name, array in arrays.items()]
        arrays = list({id(array): array for *_, array in places}.values())
        number = {id(array): number for number, array in enumerate(arrays)}
        layout = [(part, name, number[id(array)], array.shape, array.dtype) for part, name, array in places]
        if layout == self._layout:
            for variable, array in zip(self._variables, arrays, strict=True):
                variable.assign(array)
            return True
        self._layout, self._variables, self._by_part = layout, [_constant(array) for array in arrays], {}
        for part, names in parts.items():
            self._by_part[part] = {name: self._variables[number[id(array)]] for name, array in names.items()}
        return False


def _constant(array):
    # TensorFlow cannot gather small integers on a GPU; images keep their precision.
    dtype = str(array.dtype) if array.dtype.kind == "f" else "int32"
    return keras.Variable(array, dtype=dtype, trainable=False, autocast=False, name="table")
