"""Check this machine: whether it has all that the suite needs, and which device will be used for training.

    python -m tools.doctor
    python -m tools.doctor --config configs/lgg_tcga.yaml      also scans, work dir and free space

Reads   the environment, requirements.txt and, if given, a config.
Writes  nothing; prints one line per check: 'ok', 'note' (works, but worth knowing) or 'fix'.
Takes   seconds, mostly to start the backend.
Next    python -m tools.check_dataset --config FILE
"""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from utils.checks import InputError
from utils.command_line import parser_of
from utils.environment import backend_name, device_name, tensorflow
from utils.parallel import pool_of
from utils.runs import exit_code_of

ROOT = Path(__file__).resolve().parents[1]
OK, NOTE, FIX = "ok", "note", "fix"
SPARE = (
    "jax",
    "onnx",
    "onnxruntime",
    "tf2onnx",
    "tensorboardX",
    "jsonschema",
    "pybids",
    "slicerio",
    "pynrrd",
    "pytest",
    "hypothesis",
    "ruff",
)
LITTLE_DISK_GB, LITTLE_MEMORY_GB = 10, 6
SECONDS_OF_DRIVER = 60  # to wait for an unresponsive driver
BFLOAT16_CAPABILITY = 8.0  # of CUDA devices; from this version on, bfloat16 is supported by the hardware
INSTALL_GPU = {
    "tensorflow": "make install GPU=1 installs TensorFlow with CUDA",
    "jax": "install jax[cuda13] beside it",
    "torch": "install the build of PyTorch for your CUDA",
}


def main(arguments=None):
    parser = parser_of(__doc__)
    parser.add_argument("--config", type=Path, metavar="FILE", help="also check its scans and work dir")
    options = parser.parse_args(arguments)
    found = [*python(), *packages(), *backend(), *machine(), *(places(options.config) if options.config else [])]
    for state, line in found:
        print(f"{state:5}{line}")
    number = sum(state == FIX for state, _ in found)
    if number:
        raise InputError(f"{number} to fix; the lines that begin with 'fix' say how")


def python():
    """Yield the checks of the interpreter."""
    is_new_enough = sys.version_info >= (3, 11)
    cure = "" if is_new_enough else ": 3.11 or newer is needed; type: make PYTHON=python3.11 install"
    yield OK if is_new_enough else FIX, f"Python {platform.python_version()} at {sys.executable}{cure}"


def packages(pins=ROOT / "requirements.txt"):
    """Yield the checks of the packages: missing ones, versions that were not tested, or all as tested."""
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", pins.read_text(), re.MULTILINE))
    others = 0
    for name, tested in pinned.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            others += 1
            is_spared = name == "tensorflow" and os.environ.get("KERAS_BACKEND") in ("jax", "torch")
            state = NOTE if is_spared or name in SPARE else FIX
            yield state, f"{name} is not installed; make install installs {tested}"
            continue
        if version != tested:
            others += 1
            yield NOTE, f"{name} {version}, tested with {tested}"
    if not others:
        yield OK, f"all {len(pinned)} packages of {pins.name} in the versions that were tested"


def backend():
    """Yield the checks of Keras' backend, its devices and their precision."""
    try:
        import keras  # starts the backend

        name = keras.backend.backend()
        device = device_name()
    except Exception as error:  # a broken installation may raise anything
        yield FIX, f"Keras' backend does not start ({type(error).__name__}: {error}); see docs/running.md"
        return
    version = importlib.metadata.version(name)
    chosen = "KERAS_BACKEND" if os.environ.get("KERAS_BACKEND") else "the default; KERAS_BACKEND selects another"
    yield OK, f"backend {name} {version} ({chosen})"
    if device != "cpu":
        yield OK, f"trains on {device}"
        yield precision()
        return
    cards, trouble = graphics_cards()
    if cards:
        yield NOTE, f"trains on the processor, although there is {cards[0]}: {why_unused(cards, f'{name} {version}')}"
    else:
        yield NOTE, f"trains on the processor: {trouble}"


def graphics_cards():
    """Return NVIDIA cards with their drivers, whether or not the backend sees them, and the reason if none."""
    if not shutil.which("nvidia-smi"):
        cure = "if there is an NVIDIA card, install its driver; in a container, start it with --gpus all"
        return [], f"there is no nvidia-smi; {cure}"
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS_OF_DRIVER)
    except subprocess.TimeoutExpired:
        return [], f"nvidia-smi does not answer within {SECONDS_OF_DRIVER} s; restart the machine, or its driver"
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode == 0 and said:
        return [f"{line} (card, driver)" for line in said], None
    text = said[0] if said else f"exit code {done.returncode}"
    if "no devices" in text.lower():
        return [], f"nvidia-smi sees no card ({text}); on a cluster ask for one, such as --gres=gpu:1"
    cure = "restart the machine: the driver was updated since" if "mismatch" in text else "reinstall NVIDIA's driver"
    return [], f"nvidia-smi fails ({text}); {cure}"


def why_unused(cards, backend):
    """Explain why a backend does not use the cards that the driver lists, and what to do.

    Args:
        cards: From `graphics_cards`.
        backend: Its name and version.
    """
    visible, install = os.environ.get("CUDA_VISIBLE_DEVICES"), INSTALL_GPU[backend_name()]
    first = None if visible is None else visible.split(",")[0].strip()
    if first in ("", "-1", "NoDevFiles"):
        return f"CUDA_VISIBLE_DEVICES='{visible}' hides it; unset CUDA_VISIBLE_DEVICES"
    if first and first.isdecimal() and int(first) >= len(cards):
        return f"CUDA_VISIBLE_DEVICES='{visible}' names no card; they are counted from 0 to {len(cards) - 1}"
    if is_for_processors():
        return f"{backend} is a build without CUDA; {install}"
    return f"{backend} finds no CUDA libraries, or needs a newer driver; {install}, and compare nvidia-smi"


def is_for_processors():
    """Tell whether the backend was built without CUDA."""
    if backend_name() == "tensorflow":
        return not tensorflow().test.is_built_with_cuda()
    if backend_name() == "torch":
        return sys.modules["torch"].version.cuda is None
    return not any(name.startswith("jax-cuda") for name in _installed())


def _installed():
    return {str(package.name).lower().replace("_", "-") for package in importlib.metadata.distributions()}


def precision():
    """Tell whether `training.mixed_precision` is worthwhile on the device of the backend."""
    if backend_name() == "tensorflow":
        card = tensorflow().config.list_physical_devices("GPU")[0]
        capability = tensorflow().config.experimental.get_device_details(card).get("compute_capability", (0, 0))
    elif backend_name() == "torch":
        capability = sys.modules["torch"].cuda.get_device_capability()
    else:
        text = str(getattr(sys.modules["jax"].devices()[0], "compute_capability", "0.0"))
        capability = tuple(int(part) for part in text.split("."))
    pays = capability[0] + capability[1] / 10 >= BFLOAT16_CAPABILITY
    shown = ".".join(map(str, capability))
    saves = "training.mixed_precision: true saves time and memory in steps 3 and 4"
    advice = saves if pays else "keep float32: it has no bfloat16"
    return (OK if pays else NOTE), f"compute capability {shown}; {advice}"


def machine():
    """Yield the checks of processor cores, memory and tools."""
    yield OK, f"{os.cpu_count()} processor cores, {platform.machine()}, {platform.system()}"
    memory = Path("/proc/meminfo")
    if memory.exists():
        free = int(re.search(r"MemAvailable:\s+(\d+)", memory.read_text())[1]) / 1e6
        state = OK if free >= LITTLE_MEMORY_GB else NOTE
        advice = "" if state == OK else "; steps 1 and 2 take up to 1 GB a job: use few --jobs"
        yield state, f"{free:.1f} GB of memory free{advice}"
    pool, trouble = pool_of(1)
    if pool is None:
        yield NOTE, f"--jobs runs in one process: {trouble}"
    has_grid = (ROOT / ".venv-grid" / "bin" / "snakemake").exists() or shutil.which("snakemake")
    yield (OK, "Snakemake is installed") if has_grid else (NOTE, "no Snakemake, for the grid; type: make install-grid")


def places(path):
    """Yield the checks of a config, its scans and its work dir."""
    from utils.config.load import load_config

    try:
        config = load_config(path)
    except InputError as error:
        yield from ((FIX, line) for line in error.lines)
        return
    yield OK, f"{path} is a valid config"
    root = Path(config.data.root)
    yield (OK, f"scans at {root}") if root.is_dir() else (FIX, f"data.root: '{root}' is not a folder")
    folder = Path(config.work_dir).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        yield FIX, f"work_dir: '{existing}' is not writable; give another with --work-dir"
    free = shutil.disk_usage(existing).free / 1e9
    state = OK if free >= LITTLE_DISK_GB else NOTE
    yield state, f"{free:.0f} GB free at work_dir {folder} (docs/scale.md says what a dataset takes)"


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
