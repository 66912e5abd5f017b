"""Patches in mm become the nearest number of output pixels that divides the image."""

import itertools
from types import SimpleNamespace

import pytest

from tests.utils.config.test_load import small  # noqa: F401  (a fixture)
from utils.checks import InputError
from utils.config.load import load_config
from utils.config.patch_sizes import patch_edge

STAGE = "pretraining.stages.constrained"


def nearest_by_hand(mm, factor, sizes, pixel_mm):
    found = []
    for edge in range(1, max(sizes) + 1):
        if all(size % (edge * factor) == 0 for size in sizes):
            found.append((abs(edge * factor * pixel_mm - mm), edge))
    return sorted(found)[0][1]


@pytest.mark.parametrize("sizes", [(64, 80), (32, 32), (96, 224), (16, 16)])
@pytest.mark.parametrize("built", [None, 2, 1])
def test_the_nearest_edge_that_divides_the_image(sizes, built):
    for mm, pixel in itertools.product((0.5, 3, 6, 7.5, 10, 33, 500), (0.7, 1.5, 5.0)):
        stage = SimpleNamespace(patch_mm=mm, patch_size=None, decoder_levels=built)
        factor = {None: 1, 2: 4, 1: 8}[built]
        assert patch_edge(stage, 4, sizes, pixel) == nearest_by_hand(mm, factor, sizes, pixel)


@pytest.mark.parametrize(("pixel", "mm", "edge"), [(5, 6, 1), (5, 8, 2), (1.5, 6, 4), (2, 5, 2), (5, 15, 2)])
def test_a_config_says_millimetres(small, pixel, mm, edge):  # noqa: F811
    config = load_config(small, [f"slices.pixel_size={pixel}", f"{STAGE}.patch_mm={mm}"])
    stage = config.pretraining.stages["constrained"]
    assert config.patch_edge(stage) == edge and stage.patch_size is None


def test_without_millimetres_it_is_the_number_of_pixels(small):  # noqa: F811
    config = load_config(small, [f"{STAGE}.patch_size=2"])
    assert config.patch_edge(config.pretraining.stages["constrained"]) == 2


MISTAKES = [
    ([f"{STAGE}.patch_mm=6"], r"constrained.patch_mm: needs slices.pixel_size"),
    (
        [f"{STAGE}.patch_mm=6", f"{STAGE}.patch_size=4"],
        "patch_mm: stands in place of patch_size; set patch_size",
    ),
    ([f"{STAGE}.patch_size=null"], "patch_size: null leaves the choice to patch_mm"),
    ([f"{STAGE}.nearest_share=0.1", f"{STAGE}.nearest_patches=9"], "nearest_share: stands in place of nearest_patches"),
    ([f"{STAGE}.anchors_share=0.1", f"{STAGE}.anchors_per_slice=9"], "anchors_share: stands in place of anchors_per_"),
    ([f"{STAGE}.positive_within_mm=30"], r"constrained.positive_within_mm: needs slices.pixel_size"),
    (
        [f"{STAGE}.positive_within_mm=7", "slices.pixel_size=2"],
        "positive_within_mm: 7, but patches lie 8 mm apart",
    ),
    ([f"{STAGE}.nearest_share=0"], r"nearest_share: .*greater than 0"),
    ([f"{STAGE}.anchors_share=1.5"], r"anchors_share: .*less than or equal to 1"),
    (
        [f"{STAGE}.patch_mm=6", "slices.pixel_size=2", "network.rank=3", "crops={size: [8, 8, 8]}", "finetuning=null"],
        "patch_mm: is for slices",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES)
def test_what_cannot_be_is_refused(small, overrides, message):  # noqa: F811
    with pytest.raises(InputError, match=message):
        load_config(small, overrides)


def test_a_config_with_lengths_and_shares_can_be_read_again(small):  # noqa: F811
    overrides = ["slices.pixel_size=2", f"{STAGE}.patch_mm=6", f"{STAGE}.nearest_share=0.1", f"{STAGE}.anchors_share=1"]
    config = load_config(small, overrides)
    section = config.pretraining.stages["constrained"]
    assert type(section).model_validate(section.model_dump(mode="json")) == section  # as in resolved_config.yaml
    plain = load_config(small, ["slices.pixel_size=2"])
    stage = f"{STAGE}.patch_size=null", f"{STAGE}.nearest_patches=null", f"{STAGE}.anchors_per_slice=null"
    assert load_config(small, [*overrides, *stage]) == config
    assert config.hash_of_stage("constrained") != plain.hash_of_stage("constrained")
