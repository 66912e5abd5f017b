"""Training on two devices equals training on one. The CPU stands in for both, so no GPU is needed."""

import functools
import importlib
import tempfile
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.cheaply import steps_uncompiled
from tests.test_backends import ROOT, outcomes
from training.devices import check_batch_sizes, data_parallel
from utils.checks import InputError

COMMAND = "import sys, numpy; from tests.training import test_devices as t; numpy.savez(sys.argv[1], **t.outcome())"
BACKENDS = ("tensorflow", "jax")
METHODS = ("global", "constrained", "segmentation")


def outcome():
    """Return losses and health of two epochs of three steps, `(2, values)`, for each method on one and two devices."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        half = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [half, half])
    result = {}
    for count in (1, 2):
        # One device may train uncompiled, which is faster in TensorFlow for six steps.
        with data_parallel(count), steps_uncompiled(count == 1):
            result |= {f"{method}/{count}": history(method) for method in METHODS}
    return result


def history(method):
    from tests.training.test_training import pretrain, settings

    generator = np.random.default_rng(0)
    maps = generator.integers(0, 4, (18, 4, 4)).repeat(4, axis=1).repeat(4, axis=2).astype("int32")
    images = (maps[..., None] / 4 + generator.normal(0, 0.1, (18, 16, 16, 1))).astype("float32")
    # Batches of 4, validation of 9. At a high rate, rounding can change which patches are nearest.
    schedule = settings(epochs=2, steps=3, rate=3e-4)
    with tempfile.TemporaryDirectory() as folder:
        if method == "segmentation":  # with phases and layer decay; the others train with plain Adam
            phases = {"head_first": 0.5, "layer_decay": 0.8, "schedule": "cosine"}
            rows = segment(images, maps, replace(schedule, **phases), Path(folder))
        else:
            _, rows = pretrain(method, images, maps, Path(folder), schedule)
    names = [name for name in rows[0] if name not in ("epoch", "learning_rate", "seconds")]
    return np.array([[row[name] for name in names] for row in rows])


def segment(images, maps, schedule, folder):
    from losses.segmentation import segmentation_loss
    from tests.training.small import run_in, segmentation_trainer
    from training.augmentation import Changes

    changes = Changes(translation=0.1, rotation_degrees=10, scale=(0.9, 1.1), elastic_px=1.0)
    loss = functools.partial(segmentation_loss, cross_entropy_weight=0.5)
    trainer = segmentation_trainer(schedule, changes, loss, outputs=4)
    trainer.start_from(seed=1)
    trainer.use(images, maps)
    return trainer.train(np.arange(9, 18), np.arange(9), run_in(folder))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    flags = "--xla_force_host_platform_device_count=2"
    return outcomes(BACKENDS, tmp_path_factory.mktemp("devices"), COMMAND, XLA_FLAGS=flags)


@pytest.fixture(scope="module", params=BACKENDS)
def found(request, both):
    return both(request.param)


@pytest.mark.parametrize("method", METHODS)
def test_two_devices_train_what_one_trains(found, method):
    one, two = (found[f"{method}/{count}"] for count in (1, 2))
    assert np.isfinite(one).all() and (one[0] != one[1]).any()
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_shared_is_refused_before_any_work(monkeypatch):
    with data_parallel(1):
        pass
    seen = len(keras.distribution.list_devices())
    with pytest.raises(InputError, match=f"--devices 64: .* sees only .*; give --devices {seen}"), data_parallel(64):
        pass
    monkeypatch.setattr("keras.backend.backend", lambda: "torch")
    with pytest.raises(InputError, match="PyTorch uses one device"), data_parallel(2):
        pass


@pytest.mark.parametrize("script", ["constrained_contrastive_learning", "finetune_segmentation"])
def test_batches_that_cannot_be_shared_evenly_are_refused(script):
    main = importlib.import_module(script).main
    with pytest.raises(InputError, match=r"training.batch_size: \d+ slices .* --devices 7; give a multiple of 7"):
        main(["--config", str(ROOT / "configs" / "renal_demo.yaml"), "--devices", "7"])
    check_batch_sizes(2, {"a": 4, "b": 6})
    with pytest.raises(InputError) as error:
        check_batch_sizes(4, {"a": 4, "b": 6, "c": 2})
    assert [line[0] for line in error.value.lines] == ["b", "c"]
