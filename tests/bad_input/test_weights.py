"""Invalid weight files and those of another network, in predict.py and in the warm start of step 3."""

import io
import json
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pytest

from tests.bad_input.harness import assert_refused, run
from tests.cohort import CONFIG, write_cohort

AGAIN = "delete it and run the step again"
MODEL = {
    "contrasts": ["t1"],
    "files": CONFIG["data"]["contrasts"],
    "filters": [2, 4],
    "mask": None,
    "percentiles": [1, 99],
    "slices": {"image_size": [16, 16], "pixel_size": None},
    "labels": {"kidney": 1, "liver": 2},
    "voxel_size_known": True,
}
OTHER_FORMAT = (
    "expected an .npz weight file of this suite; give the weights.npz of a stage, or load the file into its Keras "
    "model and write that with models.weights.save_weights"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a model folder that predict.py accepts."""
    from models.unet import build_unet
    from models.weights import save_weights

    folder = tmp_path_factory.mktemp("model")
    (folder / "model.json").write_text(json.dumps(MODEL))
    save_weights(build_unet((16, 16, 1), filters=[2, 4], outputs=3), folder / "weights.npz")
    return folder


@pytest.fixture
def case(model, tmp_path):
    """Return a cohort, a model folder to damage, and the command that predicts with it."""
    write_cohort(tmp_path)
    shutil.copytree(model, tmp_path / "model")
    words = ["--model", tmp_path / "model", "--input", tmp_path / "data", "--output", tmp_path / "predictions"]
    return tmp_path, tmp_path / "model" / "weights.npz", words


class Payload:
    """Code that a pickle would run when read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-300])


def other_filters(path):
    from models.unet import build_unet
    from models.weights import save_weights

    save_weights(build_unet((16, 16, 1), filters=[3, 4], outputs=3), path)


def rewrite(**changes):
    """Rewrite the arrays with some of them changed; None removes one."""

    def spoil(path):
        with np.load(path) as content:
            arrays = dict(content) | changes
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})

    return spoil


def first_kernel(values):
    return rewrite(**{"encoder_1_conv_1/kernel": values})


def member(name, content, **options):
    """Add a member to the archive that is not a numpy array."""

    def spoil(path):
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, content, **options)

    return spoil


def announce_terabytes(path):
    """Write a numpy array whose header announces more data than it has."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 42,)})
    member("huge.npy", header.getvalue())(path)


def set_flag_encrypted(path):
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02")
    content[place + 8 : place + 10] = struct.pack("<H", 1)
    path.write_bytes(bytes(content))


CASES = {
    "truncated": (cut_off, f"{{path}}: damaged weight file (<any>); {AGAIN}"),
    "empty": (lambda path: path.write_bytes(b""), f"{{path}}: damaged weight file (<any>); {AGAIN}"),
    "text": (lambda path: path.write_text("weights"), f"{{path}}: damaged weight file (<any>); {AGAIN}"),
    "absent": (lambda path: path.unlink(), "{path}: no such weight file"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "{path}: is not a regular file"),
    "pickled payload": (
        lambda path: path.write_bytes(pickle.dumps(Payload(path.parent / "hacked"))),
        f"{{path}}: this is a pickle file; {OTHER_FORMAT}",
    ),
    "pickled payload in an array": (
        lambda path: first_kernel(np.array([Payload(path.parent / "hacked")], object))(path),
        f"{{path}}: damaged weight file (Object arrays cannot be loaded when allow_pickle=False); {AGAIN}",
    ),
    "Keras HDF5": (
        lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(800)),
        f"{{path}}: this is a Keras HDF5 file (.h5); {OTHER_FORMAT}",
    ),
    "Keras archive": (member("model.weights.h5", b"weights"), f"{{path}}: this is a .keras archive; {OTHER_FORMAT}"),
    "single array": (
        lambda path: path.write_bytes(b"\x93NUMPY" + bytes(200)),
        f"{{path}}: this is a single numpy array; {OTHER_FORMAT}",
    ),
    "arrays of something else": (
        rewrite(metadata=None),
        "{path}: an .npz file without 'metadata' is not a weight file of this suite",
    ),
    "metadata cut off": (
        rewrite(metadata=np.array('{"seed": ')),
        f"{{path}}: damaged weight file (Expecting value: line 1 column 10 (char 9)); {AGAIN}",
    ),
    "metadata is a list": (
        rewrite(metadata=np.array("[]")),
        f"{{path}}: damaged weight file (metadata is not a dictionary); {AGAIN}",
    ),
    "member that is no array": (
        member("note.txt", b"hello"),
        f"{{path}}: damaged weight file (note.txt holds no array, expected numbers); {AGAIN}",
    ),
    "array of texts": (
        rewrite(extra=np.array(["a"])),
        f"{{path}}: damaged weight file (extra holds <U1, expected numbers); {AGAIN}",
    ),
    "NaN": (
        first_kernel(np.full((3, 3, 1, 2), np.nan, np.float32)),
        f"{{path}}: encoder_1_conv_1/kernel holds NaN or infinite weights; {AGAIN}",
    ),
    "16 terabytes announced": (announce_terabytes, f"{{path}}: damaged weight file (<any>); {AGAIN}"),
    "encrypted": (set_flag_encrypted, f"{{path}}: damaged weight file (<any>encrypted<any>); {AGAIN}"),
    "one layer missing": (
        rewrite(**{"encoder_1_conv_1/bias": None}),
        "{path}: encoder_1_conv_1/bias is missing",
    ),
    "a layer too many": (rewrite(other=np.ones(3)), "{path}: other has no place in the network"),
    "a layer of another shape": (
        first_kernel(np.ones((3, 3, 2, 2), np.float32)),
        "{path}: encoder_1_conv_1/kernel is (3, 3, 2, 2), the network needs (3, 3, 1, 2)",
    ),
}
ONLY_FOR_PREDICTION = ("absent", "folder", "one layer missing", "a layer too many", "a layer of another shape")


@pytest.mark.parametrize("name", CASES)
def test_bad_weights_are_refused_by_predict(name, case):
    folder, path, words = case
    spoil, line = CASES[name]
    spoil(path)
    assert_refused(folder, "predict", words, [line], path=path)
    assert not (path.parent / "hacked").exists()


def test_weights_of_another_network_are_named_in_a_few_lines(case):
    folder, path, words = case
    other_filters(path)
    before = run("predict", *words)
    assert before.code == 2 and 3 < len(before.said) <= 13
    assert before.said[0] == f"{path}: encoder_1_conv_1/kernel is (3, 3, 1, 3), the network needs (3, 3, 1, 2)"
    assert not (folder / "predictions").exists()


@pytest.mark.parametrize("name", [name for name in CASES if name not in ONLY_FOR_PREDICTION])
def test_bad_weights_are_refused_as_a_warm_start(name, packed, model, tmp_path):
    path = tmp_path / "weights.npz"
    shutil.copy(model / "weights.npz", path)
    spoil, line = CASES[name]
    spoil(path)
    words = ["--config", packed / "tiny.yaml", "--set", f"pretraining.stages.global.warm_start={path}"]
    assert_refused(packed, "constrained_contrastive_learning", words, [line], path=path)
    assert not (tmp_path / "hacked").exists()
