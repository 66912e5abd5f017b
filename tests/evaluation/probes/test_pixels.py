"""Label probes of pixels, on a phantom whose features are known."""

import numpy as np
import pandas
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from data.geometry import SliceGrid
from data.store.store import SliceStore, SubjectSlices
from evaluation.probes.pixels import (
    PENALTIES,
    TOGETHER,
    USUAL,
    level_features,
    network_scores,
    pixel_scores,
    pixel_table,
    probe_pixels,
    sample_pixels,
    without_network,
)
from models.unet import build_unet, feature_levels
from tests.stores import write_store
from utils.checks import InputError

SIZE, SLICES, CONTRASTS = 16, 4, ["organ 1", "organ 2", "organ 3", "noise"]
TRAIN, VALIDATION = ["a", "b", "c"], ["d", "e"]


def subject_of(name, generator):
    """Return a body with three organs, at different places in each subject, each bright in one contrast; air is 0."""
    label = np.zeros((SLICES, SIZE, SIZE), np.uint8)
    top, left = generator.integers(2, 5, 2)
    for value in (1, 2, 3):
        label[:, top : top + 6, left + 3 * (value - 1) : left + 3 * value] = value
    body = np.zeros(label.shape, "int16")
    body[:, 1:-1, 1:-1] = 1
    organs = [np.where(label == value, 0.8, 0.2) for value in (1, 2, 3)]
    images = np.stack([*organs, generator.random(label.shape)], axis=-1) * body[..., None]
    grid = SliceGrid((SIZE, SIZE, SLICES), np.eye(4), None, (SIZE, SIZE))
    return SubjectSlices(name, grid, np.arange(SLICES), images, {None: body}, label)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    generator, path = np.random.default_rng(0), tmp_path_factory.mktemp("pixels") / "annotated.h5"
    subjects = [subject_of(name, generator) for name in TRAIN + VALIDATION]
    subjects.append(SubjectSlices(**vars(subjects[0]) | {"subject": "empty", "labels": 0 * subjects[0].labels}))
    write_store(path, subjects, contrasts=CONTRASTS, image_size=(SIZE, SIZE), attributes={"labels": ["1", "2", "3"]})
    return SliceStore(path)


def sample(store, subjects, contrasts=CONTRASTS, per_class=100, most_images=99):
    return sample_pixels(store, subjects, contrasts, most_images=most_images, per_class=per_class, seed=1)


@pytest.fixture(scope="module")
def parts(store):
    return sample(store, TRAIN), sample(store, VALIDATION)


def test_pixels_are_drawn_evenly_from_the_body_of_the_subjects_asked_for(store, parts):
    for part, subjects in zip(parts, (TRAIN, VALIDATION), strict=True):
        assert np.bincount(part.label).tolist() == [100] * 4
        assert set(part.subject) == {*subjects}
        assert (part.place[:, 0] > 0).all() and (part.place < SIZE - 1).all()  # air is a frame one pixel wide
        rows = store.rows_of(subjects)
        labels, images = store.labels(rows), store.images(CONTRASTS, rows)
        for number in range(0, 400, 7):
            image, (y, x) = part.image[number], part.place[number]
            assert part.label[number] == labels[image, y, x]
            assert part.subject[number] == store.subjects[store.subject_index[rows[image]]]
            np.testing.assert_array_equal(part.intensities()[number], images[image, y, x])
            expected = [
                2 * (place + 0.5) / size - 1 for place, size in ((y, SIZE), (x, SIZE), (image % SLICES, SLICES))
            ]
            np.testing.assert_allclose(part.positions[number], expected)
        pixels = [*zip(part.image, *part.place.T, strict=True)]
        assert len(set(pixels)) == len(pixels)


def test_of_a_class_with_fewer_pixels_all_are_taken(store):
    part = sample(store, ["d"], per_class=10**6)
    labels = store.labels(store.rows_of(["d"]))
    assert np.bincount(part.label).tolist() == [SLICES * (SIZE - 2) ** 2 - (labels > 0).sum(), *[SLICES * 18] * 3]
    assert len(np.unique(sample(store, TRAIN, most_images=2).image)) == 2


def test_what_cannot_be_probed_is_refused(store):
    with pytest.raises(InputError, match="holds no slices of a part of the split"):
        sample(store, [])
    with pytest.raises(InputError, match="empty: no pixels of two classes to tell apart"):
        sample(store, ["empty"])


def test_the_probe_finds_what_the_features_say_and_nothing_in_noise_or_shuffled_labels(parts):
    train, validation = parts
    generator = np.random.default_rng(2)

    def accuracy(channels, labels):
        known, asked = train.intensities()[:, channels], validation.intensities()[:, channels]
        found, _ = probe_pixels(known, labels, train.subject, asked)
        return balanced_accuracy_score(validation.label, found)

    assert accuracy([0, 1, 2, 3], train.label) == 1
    assert accuracy([0, 3], train.label) == pytest.approx(
        0.5, abs=0.1
    )  # one organ of three, and a guess among the others
    assert accuracy([3], train.label) == pytest.approx(0.25, abs=0.07)
    # Without noise, all pixels of an organ are equal, so shuffled labels would move whole classes.
    noise = [generator.standard_normal((len(part.label), 8)) for part in parts]
    found, _ = probe_pixels(noise[0], generator.permutation(train.label), train.subject, noise[1])
    assert balanced_accuracy_score(validation.label, found) == pytest.approx(0.25, abs=0.07)
    shuffled = [accuracy([0, 1, 2, 3], generator.permutation(train.label)) for _ in range(20)]
    assert np.mean(shuffled) == pytest.approx(0.25, abs=0.07)


def test_the_penalty_is_the_best_one_for_held_out_training_subjects():
    generator = np.random.default_rng(3)
    labels, subjects = generator.integers(0, 3, 90), np.repeat(["a", "b", "c", "d"], [20, 20, 20, 30])
    features = generator.standard_normal((90, 40)) * 5 + np.eye(3, 40)[labels] * 7 + 100
    asked = generator.standard_normal((50, 40))

    def fitted(is_known, values, penalty):
        known = features[is_known]
        mean, sd = known.mean(0), known.std(0)
        weights = dict(enumerate(len(known) / (3 * np.bincount(labels[is_known]))))
        model = LogisticRegression(C=1 / (penalty * len(known)), class_weight=weights, max_iter=5000, tol=1e-3)
        return model.fit((known - mean) / sd, labels[is_known]).predict((values - mean) / sd)

    scores = {}
    for penalty in PENALTIES:
        folds = [np.isin(subjects, names) for names in (["a", "d"], ["b"], ["c"])]
        scores[penalty] = np.mean(
            [balanced_accuracy_score(labels[out], fitted(~out, features[out], penalty)) for out in folds]
        )
    assert len(set(scores.values())) > 1
    found, penalty = probe_pixels(features, labels, subjects, asked)
    assert penalty == max(p for p in PENALTIES if scores[p] == max(scores.values()))
    np.testing.assert_array_equal(found, fitted(np.full(90, True), asked, penalty))
    assert probe_pixels(features, labels, np.full(90, "a"), asked)[1] == USUAL


@pytest.mark.parametrize("batch_size", [3, 5, 12])
def test_a_pixel_has_the_features_of_its_cell_at_every_level(parts, batch_size):
    part, network = parts[0], feature_levels(build_unet((SIZE, SIZE, 2), filters=[4, 8, 8], head=None, seed=1))
    found = level_features(network, part, [3, 0], batch_size)
    maps = network.predict(part.images[..., [3, 0]], verbose=0)
    assert [one.shape for one in found] == [(400, 8), (400, 8), (400, 4)]
    for level, of_level in zip(maps, found, strict=True):
        factor = SIZE // level.shape[1]
        fine = np.kron(level, np.ones((1, factor, factor, 1)))  # every pixel gets the vector of its cell
        expected = [fine[image, y, x] for image, (y, x) in zip(part.image, part.place, strict=True)]
        np.testing.assert_allclose(of_level, expected, rtol=1e-4, atol=1e-5)


def test_every_level_and_all_decoder_levels_together_are_probed(parts):
    network = feature_levels(build_unet((SIZE, SIZE, 2), filters=[4, 8, 8], head=None, seed=1))
    about = {"representation": "random", "draw": 0, "pretrained": "nothing"}
    rows = network_scores(about, network, [[0, 1], [2, 3]], parts, 4)
    names = ["deepest encoder level", "decoder level 1", "decoder level 2", TOGETHER]
    assert [(row["level"], row["features"]) for row in rows] == [*zip(names, [16, 16, 8, 24], strict=True)]
    side_by_side = [
        np.hstack([level_features(network, part, channels, 4)[2] for channels in ([0, 1], [2, 3])]) for part in parts
    ]
    (alone,) = pixel_scores(about, {"last": side_by_side}, *parts)
    assert alone["value"] == rows[2]["value"] and alone["pixels"] == 400 and len(alone["each"]) == 2


def test_a_stage_named_like_a_baseline_has_a_separate_row(parts):
    stage = {"representation": "position", "pretrained": "encoder", "level": TOGETHER, "features": 8, "draw": 0}
    stage |= {"penalty": USUAL, "pixels": 400, "each": np.array([0.1, 0.2]), "value": 0.15}
    baselines = [*without_network(*parts)]
    text = pixel_table([*baselines, stage], parts, ["one", "two", "three"]).text
    found = text[text["Representation"] == "position"].set_index("Pretrained")[TOGETHER]
    assert found.to_dict() == {"-": f"{baselines[1]['value']:.3f}", "encoder": "0.150"}


def test_the_table_has_a_column_for_each_level_and_says_what_chance_is(parts):
    rows = [*without_network(*parts)]
    about = {"representation": "random", "pretrained": "nothing", "level": "decoder level 1", "features": 8}
    about |= {"penalty": USUAL, "pixels": 400, "each": np.array([0.4, 0.6])}
    rows += [about | {"draw": draw, "value": value} for draw, value in enumerate((0.4, 0.5))]
    table = pixel_table(rows, parts, ["one", "two", "three"], "fold0:")
    expected = {"intensity": "1.000", "intensity + position": "1.000", "random": "-"}
    text = table.text.set_index("Representation")
    assert text[TOGETHER][list(expected)].to_dict() == expected
    assert text["decoder level 1"].to_dict() == dict.fromkeys(
        ["intensity", "position", "intensity + position"], "-"
    ) | {"random": "0.450 [0.400, 0.500]"}
    assert table.caption.startswith("fold0: Balanced accuracy") and "chance 0.25" in table.caption
    assert (
        "400 pixels of 3 training subjects" in table.caption and "400 pixels of 2 validation subjects" in table.caption
    )
    numbers = pandas.DataFrame(table.numbers)
    assert numbers["chance"].eq(0.25).all() and numbers["subject_mean"].iloc[-1] == pytest.approx(0.5)
