"""What a result was made with: versions, backend, device, machine, git commit."""

import contextlib
import datetime
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

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
        "cpu_count": os.cpu_count(),
        "machine": platform.machine(),
        "git": git_state(),
    }


def backend_name():
    keras = sys.modules.get("keras")
    return keras.backend.backend() if keras else None


def tensorflow():
    """Return TensorFlow; imported here only, so that the other backends do without it."""
    import tensorflow as module

    return module


def device_name():
    """Name the accelerator that the loaded backend uses, or 'cpu'; None when no backend is loaded."""
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


@functools.cache  # asked once, when a script starts: later the files may be newer than the code that runs
def git_state():
    here = Path(__file__).resolve().parent

    def git(*words):
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
