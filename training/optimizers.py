"""Adam with a separate learning rate for each weight, which can change between epochs without recompilation."""

import re
from collections.abc import Sequence

import keras


class LayerwiseAdam(keras.optimizers.Adam):
    """Adam that multiplies the learning rate of each weight by its entry in a vector.

    The vector is a variable: the same compiled step can freeze a weight (0), slow it down or train it normally (1).
    With ones everywhere, it equals Adam bit for bit. A frozen weight still accumulates moments; reset them before it
    is trained (`reset_optimizer`).

    Attributes:
        scales: `(V,)` float32, one entry for each weight in the order of `build`.
    """

    def build(self, var_list):
        """Add the vector of scales to the variables of Adam."""
        if self.built:
            return
        super().build(var_list)
        ones = keras.initializers.Ones()
        self.scales = self.add_variable(shape=(len(var_list),), initializer=ones, dtype="float32", name="scales")

    def update_step(self, gradient, variable, learning_rate):
        """Update one weight at its own rate."""
        rate = keras.ops.cast(learning_rate, "float32") * self.scales[self._get_variable_index(variable)]
        super().update_step(gradient, variable, rate)


def levels_from_output(names: Sequence[str]) -> dict[str, int]:
    """Count the levels between each layer of a U-Net and its output.

    Args:
        names: Layer names of one network, such as `decoder_5_conv_1`.

    Returns:
        Name to level: heads 0, the last decoder level 1, and so on down the decoder and up the encoder, so that the
        stem is farthest.
    """
    places = {name: re.match(r"(encoder|decoder)_(\d+)_", name) for name in names}
    deepest = {
        floor: max((int(place[2]) for place in places.values() if place and place[1] == floor), default=0)
        for floor in ("encoder", "decoder")
    }
    levels = {}
    for name, place in places.items():
        above = deepest["decoder"] if place and place[1] == "encoder" else 0
        levels[name] = above + deepest[place[1]] - int(place[2]) + 1 if place else 0
    return levels


def reset_optimizer(optimizer: keras.optimizers.Optimizer, learning_rate: float) -> None:
    """Clear all moments, so that one compiled step serves many runs."""
    for variable in optimizer.variables:
        variable.assign(keras.ops.zeros(variable.shape, variable.dtype))
    optimizer.learning_rate.assign(learning_rate)
    if isinstance(optimizer, LayerwiseAdam):
        optimizer.scales.assign(keras.ops.ones(optimizer.scales.shape))


def set_scales(task, schedule, epoch, fresh):
    """Set the factors of the learning rate for an epoch.

    Args:
        task: Task with a `LayerwiseAdam`.
        schedule: `training.schedules.Schedule`.
        epoch: Counted from 0.
        fresh: Names of the layers that are not pretrained.
    """
    owners = {id(weight): layer.name for layer in task.network.layers for weight in layer.weights}
    names = [owners[id(weight)] for weight in task.trainable_variables]  # in the order in which the optimiser was built
    levels = levels_from_output([layer.name for layer in task.network.layers])
    scales = schedule.scales(epoch, [levels[name] for name in names], [name in fresh for name in names])
    task.optimizer.scales.assign(scales)
