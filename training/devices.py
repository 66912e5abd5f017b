"""Data parallelism: each batch is split across the devices of one machine, with the same result as on one device.

Every device holds all weights and a part of the batch. JAX compiles one program for all devices, in which a loss covers
the whole batch. TensorFlow runs one program per device and sums their gradients: there, `gathered` collects the slices
of all devices if a loss compares them, and `share_of_loss` normalises the sum of the gradients.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import keras
from keras import ops

from utils.checks import InputError
from utils.environment import device_name, tensorflow

log = logging.getLogger("mrccl")

UNKNOWN_FREE_BYTES = 8e9
MOST_STEPS = 32  # in one dispatch, so that the host waits for the device and not vice versa


@contextlib.contextmanager
def data_parallel(count: int) -> Iterator[None]:
    """Split every batch across several devices; networks must be built and trained inside this context.

    Args:
        count: Devices N; 1 changes nothing. Training batches must be a multiple of N (`check_batch_sizes`).

    Raises:
        InputError: If fewer devices are visible, or with PyTorch, which uses one device here.
    """
    if count == 1:
        yield
        return
    backend = keras.backend.backend()
    if backend == "torch":
        raise InputError(f"--devices {count}: PyTorch uses one device here; set KERAS_BACKEND to tensorflow or jax")
    devices = keras.distribution.list_devices()
    if len(devices) < count:
        raise InputError(f"--devices {count}: {backend} sees only {', '.join(devices)}; give --devices {len(devices)}")
    log.info("each batch is split across %s", ", ".join(devices[:count]))
    with {"tensorflow": _mirrored, "jax": Replicated}[backend](devices=devices[:count]).scope():
        yield


def has_accelerator() -> bool:
    """True when the backend of this process computes on a GPU or TPU."""
    return device_name() != "cpu"


def use_precision(mixed: bool) -> None:
    """Compute in bfloat16 (weights and losses stay float32) or in float32; call it before building networks."""
    keras.config.set_dtype_policy("mixed_bfloat16" if mixed else "float32")
    backend, numbers = keras.backend.backend(), "bfloat16, weights in float32" if mixed else "float32"
    log.info("trains on %s with %s %s in %s", device_name(), backend, sys.modules[backend].__version__, numbers)


def free_bytes() -> int:
    """Free memory for data in bytes: of the device, or of this machine if it computes on the CPU.

    If the backend does not report it (TensorFlow on a GPU), 8 GB are assumed.
    """
    if not has_accelerator():
        text = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else ""
        found = re.search(r"MemAvailable:\s+(\d+) kB", text)
        return int(found[1]) * 1024 if found else int(UNKNOWN_FREE_BYTES)
    backend = keras.backend.backend()
    if backend == "jax":
        statistics = sys.modules["jax"].local_devices()[0].memory_stats() or {}
        return int(statistics.get("bytes_limit", UNKNOWN_FREE_BYTES)) - int(statistics.get("bytes_in_use", 0))
    return int(sys.modules["torch"].cuda.mem_get_info()[0] if backend == "torch" else UNKNOWN_FREE_BYTES)


def steps_per_dispatch(steps: int, last_is_smaller: bool = False) -> int:
    """Return how many steps of an epoch go to the device at a time; 1 where the step itself takes most of the time.

    Args:
        steps: Steps of the epoch.
        last_is_smaller: The last batch is smaller than the others, which TensorFlow's input pipeline cannot stack.
    """
    is_tensorflow = keras.backend.backend() == "tensorflow"
    if (
        not has_accelerator()
        or keras.distribution.distribution()
        or replicas() > 1
        or (is_tensorflow and last_is_smaller)
    ):
        return 1
    # A divisor avoids the compilation of a shorter last group.
    divisors = [number for number in range(MOST_STEPS, MOST_STEPS // 4, -1) if steps % number == 0]
    return divisors[0] if divisors else min(MOST_STEPS, steps)


def check_batch_sizes(count: int, batch_sizes: Mapping[str, int]) -> None:
    """Raise InputError unless each batch size, by section of the config, is a multiple of the number of devices."""
    lines = [
        f"{key}.batch_size: {size} slices cannot be split evenly by --devices {count}; give a multiple of {count}"
        for key, size in batch_sizes.items()
        if size % count
    ]
    if lines:
        raise InputError(lines)


class Replicated(keras.distribution.DataParallel):
    """Weights and batches on every device (JAX); `shared_out` then splits the batch in the compiled step.

    Keras would split all batches of a set like the first one, but the last batch of a validation set is smaller.
    """

    def get_data_layout(self, data_shape):
        return keras.distribution.TensorLayout([None] * len(data_shape), self.device_mesh)


def shared_out(batch):
    """Give each JAX device its part of a batch, a dictionary of tensors `(B, ...)`; other backends do this themselves.

    A batch that cannot be split evenly stays on all devices.
    """
    distribution = keras.distribution.distribution()
    if not isinstance(distribution, Replicated):
        return batch
    mesh, name = distribution.device_mesh, distribution.batch_dim_name
    return {
        key: tensor
        if tensor.shape[0] is None or tensor.shape[0] % mesh.devices.size
        else keras.distribution.distribute_tensor(
            tensor, keras.distribution.TensorLayout([name] + [None] * (len(tensor.shape) - 1), mesh)
        )
        for key, tensor in batch.items()
    }


def _mirrored(devices):
    return tensorflow().distribute.MirroredStrategy(devices)


def replicas() -> int:
    """Number of TensorFlow programs that share the current training batch; 1 on other backends."""
    if keras.backend.backend() != "tensorflow":
        return 1
    return tensorflow().distribute.get_strategy().num_replicas_in_sync


def gathered(*tensors):
    """Collect the slices of all devices, `(B, ...)` each; gradients flow back to their devices."""
    if replicas() == 1:
        return tensors
    context = tensorflow().distribute.get_replica_context()
    # One by one, because labels have no gradient. Gathering discards known sizes.
    return tuple(
        tensorflow().ensure_shape(context.all_gather(part, axis=0), (None, *part.shape[1:])) for part in tensors
    )


def share_of_loss(costs):
    """Return the contribution of this device to the mean of the costs `(B,)`; contributions sum to the mean.

    TensorFlow sums the gradients of all devices. If each has the costs of its own slices, their mean is divided by the
    number of devices; if each has the costs of the whole batch, `all_gather` has already summed the contributions to a
    slice, and the same division applies. A device left without slices at the end of a validation set contributes 0.
    """
    number = replicas()
    if number == 1:
        return ops.mean(costs)
    slices = ops.maximum(ops.cast(ops.size(costs), "float32"), 1.0)
    return ops.sum(costs) / slices / number
