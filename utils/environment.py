"""The environment of a result: versions, backend, device, machine, git commit."""

import contextlib
import datetime
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("keras", "tensorflow", "jax", "torch", "numpy", "scipy", "scikit-learn", "scikit-image", "nibabel", "h5py")


def environment():
    """Return versions, backend, device, machine and git commit as a dictionary ready for JSON."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": versions,
        "backend": backend_name(),
        "device": device_name(),
        "deterministic": is_deterministic(),
        "cpu_count": os.cpu_count(),
        "machine": platform.machine(),
        "git": git_state(),
    }


def project_version():
    """Return the version of this suite, as stated in `pyproject.toml`."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def started_as():
    """Return the words that start the running script: `['python', '-m', 'tools.NAME']` for those in `tools/`."""
    script = Path(sys.argv[0])
    return ["python", "-m", f"tools.{script.stem}"] if script.parent.name == "tools" else ["python", script.name]


def prepare_backend():
    """Set what TensorFlow reads from the environment when it starts, unless the user has set it.

    By default, TensorFlow returns the memory of every intermediate result to the system and has it cleared again, which
    took two fifths of the time of a training step on a CPU. Its allocator for GPUs keeps and reuses it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # hides TensorFlow's messages, except early ones (I0000)
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
    if hasattr(os, "sysconf"):  # not on Windows
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        os.environ.setdefault("TF_CPU_BFC_MEM_LIMIT_IN_MB", str(memory // 2**20))  # otherwise 64 GiB


def backend_name():
    keras = sys.modules.get("keras")
    return keras.backend.backend() if keras else None


def make_deterministic():
    """Restrict the backend to algorithms with a fixed order of summation; call this before the first step.

    It is slower on a GPU. On a CPU, training is repeatable without it if the number of threads is the same.
    """
    chosen = os.environ.get("KERAS_BACKEND")
    if chosen == "jax":  # read when JAX starts
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
    if chosen == "torch":  # read when cuBLAS starts
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    import keras

    if keras.backend.backend() == "tensorflow":
        tensorflow().config.experimental.enable_op_determinism()
    if keras.backend.backend() == "torch":
        sys.modules["torch"].use_deterministic_algorithms(True)
    is_deterministic.chosen = True


def is_deterministic():
    """Tell whether `make_deterministic` was called in this process."""
    return getattr(is_deterministic, "chosen", False)


def tensorflow():
    """Return TensorFlow; it is imported only here, so that other backends do not need it."""
    import tensorflow as module

    return module


def device_name():
    """Name the accelerator that the loaded backend uses, or 'cpu'; None if no backend is loaded."""
    if backend_name() == "tensorflow":
        config = tensorflow().config
        devices = config.list_physical_devices("GPU")
        return config.experimental.get_device_details(devices[0])["device_name"] if devices else "cpu"
    if backend_name() == "jax":
        return sys.modules["jax"].devices()[0].device_kind
    if backend_name() == "torch":
        torch = sys.modules["torch"]
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return None


@functools.cache  # read once, when a script starts: later, the files may be newer than the running code
def git_state():
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
