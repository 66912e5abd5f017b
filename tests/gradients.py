"""Gradients from the current backend and from central differences."""

import keras
import numpy as np


def gradient(function, array):
    """Return the gradient of the sum of `function(tensor)`, as numpy."""
    return value_and_gradient(function, array)[1]


def value_and_gradient(function, array):
    """Return `function(tensor)` and the gradient of its sum, as numpy; JAX compiles both at once."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        def summed(tensor):
            value = function(tensor)
            return keras.ops.sum(value), value

        (_, value), result = jax.jit(jax.value_and_grad(summed, has_aux=True))(array)
        return np.asarray(value), np.asarray(result)
    if backend == "tensorflow":
        import tensorflow as tf

        variable = tf.Variable(array)
        with tf.GradientTape() as tape:
            value = function(variable)
            total = keras.ops.sum(value)
        result = tf.convert_to_tensor(tape.gradient(total, variable))  # gathers give IndexedSlices
        return keras.ops.convert_to_numpy(value), result.numpy()
    variable = keras.ops.convert_to_tensor(array).requires_grad_()
    value = function(variable)
    keras.ops.sum(value).backward()
    return keras.ops.convert_to_numpy(value), variable.grad.cpu().numpy()


def compiled(function):
    """Let JAX compile a function as a whole, instead of operation by operation."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    return jax.jit(function)


def central_differences(function, array, step=1e-6):
    """Return the gradient of the sum of a float64 numpy function, one entry at a time."""
    array = np.array(array, "float64")
    result = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        result[index] = np.sum(_difference(function, array, index, step))
    return result


def central_differences_of_slices(function, array, step=1e-6):
    """Return the same for a function from `(B, ...)` to `(B,)`, varying one entry of all slices at once."""
    array = np.array(array, "float64")
    result = np.zeros_like(array)
    for index in np.ndindex(array.shape[1:]):
        result[:, *index] = _difference(function, array, (slice(None), *index), step)
    return result


def _difference(function, array, index, step):
    values = []
    for sign in (1, -1):
        shifted = array.copy()
        shifted[index] += sign * step
        values.append(function(shifted))
    return (values[0] - values[1]) / (2 * step)
