"""Weight files (.npz, one array per `layer/variable`, readable without Keras) and transfer between networks by name."""

import contextlib
import json
import pickle
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from utils.checks import InputError, counted
from utils.runs import atomic_path

METADATA = "metadata"  # has no "/", so it cannot be the name of a weight
STEM = "encoder_1_conv_1"  # the only layer that sees the contrasts
HEADS = ("projection", "segmentation", "reconstruction", "synthesis")
OTHER_FORMATS = {b"\x89HDF": "a Keras HDF5 file (.h5)", b"\x80": "a pickle file", b"\x93NUMPY": "a single numpy array"}

AGAIN = "delete it and run the step again"
# Everything that zip, numpy and JSON raise on malformed bytes.
DAMAGE: tuple[type[Exception], ...] = (OSError, ValueError, TypeError, AttributeError, EOFError, MemoryError)
DAMAGE += (OverflowError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error, struct.error)
DAMAGE += (pickle.UnpicklingError,)
LINES_SHOWN = 12  # differences between a file and a network
LARGEST_BYTES = 4 << 30  # of all weights together, in memory


@dataclass(frozen=True)
class TransferReport:
    """Which layers received pretrained weights: `moved` unchanged, `adapted` (the stem), or `left` as initialised."""

    moved: tuple[str, ...]
    adapted: tuple[str, ...]
    left: tuple[str, ...]

    def summary(self) -> str:
        """Return one line for the log."""
        parts = [f"{counted(len(self.moved), 'layer')} moved"]
        parts += [f"adapted to other contrasts: {', '.join(self.adapted)}"] * bool(self.adapted)
        parts += [f"left as initialised: {', '.join(self._left_in_levels())}"] * bool(self.left)
        return "; ".join(parts)

    def _left_in_levels(self):
        """Name the layers that were left; a level none of whose layers moved stands for all of them."""
        taken = {_level(name) for name in (*self.moved, *self.adapted)}
        counts = Counter(map(_level, self.left))
        whole = {level for level, count in counts.items() if count > 1 and level not in taken}
        return dict.fromkeys(
            f"{at} ({counts[at]} layers)" if (at := _level(name)) in whole else name for name in self.left
        )


def _level(name):
    """Floor and level of a layer: `decoder_1` of `decoder_1_conv_2`."""
    return "_".join(name.split("_")[:2])


def weights_of(model: keras.Model) -> dict[str, np.ndarray]:
    """Return a dict from `layer/variable` to numpy array, in the order of the layers."""
    return {key: keras.ops.convert_to_numpy(variable) for key, variable in _variables(model).items()}


def save_weights(model: keras.Model, path: Path, *, half: bool = False, **metadata: Any) -> None:
    """Write all weights of a model to an .npz file, atomically; the same weights give the same bytes.

    Args:
        model: A `keras.Model` whose layers have unique names.
        path: File to write.
        half: Store float16 instead of float32: half the size, values rounded to about three digits.
        **metadata: Strings to keep with the weights, as one JSON entry.

    Raises:
        InputError: A weight is not finite, or too large for the stored type; nothing is written then.
    """
    _check_range(weights_of(model), path, "float16" if half else "float32")
    arrays = {key: value.astype("float16") if half else value for key, value in weights_of(model).items()}
    text = json.dumps(metadata, sort_keys=True)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        everything: dict[str, Any] = {METADATA: np.array(text), **arrays}
        np.savez_compressed(file, **everything)


def _check_range(arrays, path, kind):
    """Refuse weights that would be infinite on disk, which only a diverged training produces."""
    limit, cure = float(np.finfo(kind).max), "the training has diverged; lower learning_rate"
    for key, array in arrays.items():
        largest = float(np.abs(array.astype("float64")).max(initial=0))
        if not np.isfinite(largest):
            raise InputError(f"{path}: not written, because {key} holds NaN or infinite weights: {cure}")
        if largest > limit:
            raise InputError(f"{path}: not written, because {key} reaches {largest:.3g}, beyond {kind}: {cure}")


def read_weights(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a file written by `save_weights`.

    Returns:
        A dict from `layer/variable` to float32 array, and the metadata dict.

    Raises:
        InputError: For a missing or damaged file, or one in another format.
    """
    path = Path(path)
    _check_format(path)
    try:
        with np.load(path, allow_pickle=False) as content:
            _check_size(path, content.zip)
            metadata = json.loads(str(content[METADATA]))
            arrays = {key: content[key] for key in content.files if key != METADATA}
    except InputError:
        raise
    except KeyError:
        raise InputError(f"{path}: an .npz file without '{METADATA}' is not a weight file of this suite") from None
    except DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: damaged weight file ({reason}); {AGAIN}") from None
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: damaged weight file ({METADATA} is not a dictionary); {AGAIN}")
    return {key: _checked_array(path, key, array) for key, array in arrays.items()}, metadata


@dataclass(frozen=True)
class Pretrained:
    """Weights of an earlier training, with what they were made from and the subjects they have seen.

    Attributes:
        path: The file.
        arrays: `layer/variable` -> float32 array.
        contrasts: Names of the input channels; None if they have none, as in a network that saw its contrasts one at a
            time.
        made_from: What they were made from, as the file records it: `config_hash`, `split_hash`, `scans`, ...
        seen: Subjects that these weights, or the weights they started from, were trained on.
        seen_scans: Hash of each image that they have seen -> its subject.
    """

    path: Path
    arrays: Mapping[str, np.ndarray]
    contrasts: Sequence[str] | None = None
    made_from: Mapping[str, Any] = field(default_factory=dict)
    seen: frozenset[str] = frozenset()
    seen_scans: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Pretrained":
        """Read a file written by `save_weights`; see `read_weights` for errors."""
        arrays, found = read_weights(path)
        seen, scans = frozenset(found.get("seen", ())), found.get("seen_scans", {})
        return cls(Path(path), arrays, found.get("contrasts"), found, seen, scans)

    def move_into(
        self, network: keras.Model, contrasts: Sequence[str] | None, stay: Iterable[str] = ()
    ) -> TransferReport:
        """Move the weights into another network, see `transfer`; returns a `TransferReport`."""
        return transfer(self.arrays, network, source_contrasts=self.contrasts, target_contrasts=contrasts, stay=stay)

    def mistakes(
        self, init: str, config_hash: str, split_hash: str | None, tested: Mapping[str, Iterable[str]]
    ) -> Iterator[str]:
        """Say why these weights cannot be used: leaks first, then another config or split.

        Args:
            init: Name of the stage, for the messages.
            config_hash: Hash of the stage in the current config.
            split_hash: Hash of the current split; None if it is not compared.
            tested: Test subject -> hashes of its images.

        Yields:
            One line for each mistake.
        """
        for subject in sorted(tested.keys() & self.seen):
            yield f"{subject}: test subject, but '{init}' was pretrained on it"
        for subject in sorted(tested.keys() - self.seen):
            for owner in sorted({self.seen_scans[digest] for digest in tested[subject] if digest in self.seen_scans}):
                yield (
                    f"{subject}: test subject, but '{init}' was pretrained on the same scan under the name {owner}; "
                    "take it out of the test set, or pretrain without it"
                )
        again = "run step 3 again with --overwrite"
        if split_hash and self.made_from.get("split_hash") != split_hash:
            yield f"{self.path}: made with another split; {again}"
        if self.made_from.get("config_hash") != config_hash:
            yield f"{self.path}: made with another config; {again}"


def load_weights(model: keras.Model, path: Path) -> dict[str, Any]:
    """Load a file written by `save_weights` into a model of the same architecture, heads included.

    Returns:
        The metadata dict.

    Raises:
        InputError: When file and model differ in any name or shape; nothing is loaded then.
    """
    arrays, metadata = read_weights(path)
    variables = _variables(model)
    lines = [
        f"{path}: {key} is {arrays[key].shape}, the network needs {tuple(variable.shape)}"
        for key, variable in variables.items()
        if key in arrays and arrays[key].shape != tuple(variable.shape)
    ]
    lines += [f"{path}: {key} is missing" for key in variables if key not in arrays]
    lines += [f"{path}: {key} has no place in the network" for key in arrays if key not in variables]
    if (more := len(lines) - LINES_SHOWN) > 0:
        lines[LINES_SHOWN:] = [f"{path}: {more} more differences; these are weights of another network"]
    if lines:
        raise InputError(lines)
    for key, variable in variables.items():
        variable.assign(arrays[key])
    return metadata


def transfer(
    source: Any,
    target: keras.Model,
    *,
    source_contrasts: Sequence[str] | None = None,
    target_contrasts: Sequence[str] | None = None,
    stay: Iterable[str] = (),
) -> TransferReport:
    """Move pretrained weights into another network, layer by layer, by name.

    Heads never move, nor do the layers in `stay`. The stem adapts when the contrasts differ: with both lists given, a
    contrast of the same name keeps its slice of the kernel and a new one gets the mean slice; otherwise every contrast
    gets the mean slice. The kernel is then scaled by (source contrasts / target contrasts), so that an image shown in
    all contrasts at once gives a response of the same size (ours).

    Args:
        source: A `keras.Model`, a dict from `layer/variable` to array, or the path of a weight file.
        target: The `keras.Model` to change.
        source_contrasts: Contrast names of the source's input channels; None if they have none, as in a network that
            saw its contrasts one at a time.
        target_contrasts: Contrast names of the target's input channels.
        stay: Prefixes of the names of layers that stay as initialised, such as `decoder_5_`.

    Returns:
        A `TransferReport` of layer names.

    Raises:
        InputError: When no layer can move, or one that should move has another shape; nothing is changed then.
    """
    arrays = _arrays_of(source)
    stay = (*HEADS, *stay)
    variables = {key: variable for key, variable in _variables(target).items() if not key.startswith(stay)}
    shared = [key for key in variables if key in arrays]
    kernel = f"{STEM}/kernel"
    is_stem_changed = False
    if kernel in shared:
        contrasts = (source_contrasts, target_contrasts)
        stem = _adapted_stem(arrays[kernel], variables[kernel].shape[-2], *contrasts)
        is_stem_changed = stem is not arrays[kernel]
        arrays = {**arrays, kernel: stem}
    _check_transfer(arrays, variables, shared)
    for key in shared:
        variables[key].assign(arrays[key])
    adapted = (STEM,) if is_stem_changed else ()
    moved = tuple(name for name in _layer_names(shared) if name not in adapted)
    left = tuple(name for name in _layer_names(_variables(target)) if name not in moved + adapted)
    return TransferReport(moved, adapted, left)


def _variables(model):
    return {f"{layer.name}/{variable.name}": variable for layer in model.layers for variable in layer.weights}


def _arrays_of(source):
    if isinstance(source, Mapping):
        return source
    return weights_of(source) if isinstance(source, keras.Model) else read_weights(source)[0]


def _layer_names(keys):
    return tuple(dict.fromkeys(key.split("/")[0] for key in keys))


def _adapted_stem(kernel, channels, source_contrasts, target_contrasts):
    """Return the kernel itself where it fits, or one for other contrasts, `(..., channels, filters)`."""
    known = source_contrasts is not None and target_contrasts is not None
    for names, size in ((source_contrasts, kernel.shape[-2]), (target_contrasts, channels)):
        if known and len(names) != size:
            raise InputError(f"{STEM}: {size} input channels, but {len(names)} contrasts are named: {', '.join(names)}")
    if list(source_contrasts) == list(target_contrasts) if known else kernel.shape[-2] == channels:
        return kernel
    slices = dict(zip(source_contrasts, np.moveaxis(kernel, -2, 0), strict=True)) if known else {}
    mean = kernel.mean(axis=-2)
    adapted = [slices.get(name, mean) for name in (target_contrasts if known else range(channels))]
    return np.stack(adapted, axis=-2) * (kernel.shape[-2] / channels)


def _check_transfer(arrays, variables, shared):
    if not shared:
        raise InputError(
            "weight transfer: no layer of the network has a name that occurs in the pretrained weights; found "
            f"{', '.join(_layer_names(arrays)[:3]) or 'nothing'}, expected {', '.join(_layer_names(variables)[:3])}"
        )
    _check_rank(arrays, variables, shared)
    depths = [_depth(keys) for keys in (arrays, variables)]
    # Decoder levels count from the deepest one: at a different depth they would land on levels of a different size.
    if depths[0] != depths[1] and any(key.startswith("decoder_") for key in shared):
        raise InputError(f"weight transfer: the pretrained network has {depths[0]} levels, this one {depths[1]}")
    lines = [
        f"weight transfer: {key} is {arrays[key].shape} in the pretrained network, {tuple(variables[key].shape)} in "
        "this one; network.filters of both must agree"
        for key in shared
        if arrays[key].shape != tuple(variables[key].shape)
    ]
    if lines:
        raise InputError(lines)


def _check_rank(arrays, variables, shared):
    for key in shared:
        before, now = (len(values[key].shape) - 2 for values in (arrays, variables))
        if key.endswith("/kernel") and before != now:
            raise InputError(
                f"weight transfer: the pretrained network has rank {before}, this one {now} (2: slices, 3: volumes); "
                "start from a network that was pretrained on the same kind of image"
            )


def _depth(keys):
    return max((int(match[1]) for key in keys if (match := re.match(r"encoder_(\d+)_", key))), default=0)


def _check_size(path, archive):
    """Refuse a file that would exhaust the memory: a few bytes can declare any number of zeros."""
    announced = sum(member.file_size for member in archive.infolist())
    if announced > LARGEST_BYTES:
        raise InputError(f"{path}: announces {announced / 2**30:.0f} GiB of weights, expected at most 4; {AGAIN}")


def _checked_array(path, key, array):
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        kind = getattr(array, "dtype", "no array")
        raise InputError(f"{path}: damaged weight file ({key} holds {kind}, expected numbers); {AGAIN}")
    array = array.astype("float32")  # float16 is for the disk only
    if not np.isfinite(array).all():
        raise InputError(f"{path}: {key} holds NaN or infinite weights; {AGAIN}")
    return array


def _check_format(path):
    if not path.is_file():
        raise InputError(f"{path}: no such weight file" if not path.exists() else f"{path}: is not a regular file")
    with open(path, "rb") as file:
        start = file.read(6)
    found = next((what for magic, what in OTHER_FORMATS.items() if start.startswith(magic)), None)
    if found is None and zipfile.is_zipfile(path):
        # A damaged archive is reported when its arrays are read.
        with contextlib.suppress(*DAMAGE), zipfile.ZipFile(path) as content:
            found = "a .keras archive" if "model.weights.h5" in content.namelist() else None
    if found:
        raise InputError(
            f"{path}: this is {found}; expected an .npz weight file of this suite; give the weights.npz of a stage, "
            "or load the file into its Keras model and write that with models.weights.save_weights"
        )
