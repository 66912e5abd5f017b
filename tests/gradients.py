"""Gradients by the backend in use, and by central differences."""

import keras
import numpy as np


def gradient(function, array):
    """Return the gradient of the sum of `function(tensor)`, as numpy."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        variable = tf.Variable(array)
        with tf.GradientTape() as tape:
            total = keras.ops.sum(function(variable))
        result = tape.gradient(total, variable)
        return tf.convert_to_tensor(result).numpy()  # gathers give IndexedSlices
    if backend == "jax":
        import jax

        return np.asarray(jax.jit(jax.grad(lambda tensor: keras.ops.sum(function(tensor))))(array))
    variable = keras.ops.convert_to_tensor(array).requires_grad_()
    keras.ops.sum(function(variable)).backward()
    return variable.grad.cpu().numpy()


def compiled(function):
    """Have JAX compile a function as a whole, which it otherwise does operation by operation."""
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
    """Return the same, the same entry of all slices at once: for a function `(B, ...)` to `(B,)`, slice by slice."""
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
