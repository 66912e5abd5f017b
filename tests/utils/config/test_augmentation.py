import pytest
from pydantic import ValidationError

from tests.config_hashes import ROOT
from utils.checks import InputError
from utils.config.augmentation import AugmentationSection, SynthesisAugmentationSection
from utils.config.load import load_config

CHAOS, LGG = "configs/chaos_mr.yaml", "configs/lgg_tcga.yaml"
both = pytest.mark.parametrize("section", [AugmentationSection, SynthesisAugmentationSection])


def load(path, *overrides):
    return load_config(ROOT / path, [f"finetuning.augmentation.{override}" for override in overrides])


@both
def test_everything_new_is_off_by_default(section):
    changes = section().changes()
    assert set(changes) == {
        *("translation", "rotation_degrees", "scale", "elastic_px", "elastic_grid", "brightness", "contrast")
    }


@both
def test_lengths_in_mm_become_pixels_in_one_place(section):
    lengths = {"translation_mm": 12, "elastic_mm": 7, "elastic_grid_mm": 90, "blur_mm": (1.5, 4.5)}
    changes = section(**lengths).changes(3.0)
    assert changes["translation"] == 0 and changes["translation_px"] == pytest.approx(4)
    assert changes["elastic_px"] == pytest.approx(7 / 3) and changes["elastic_grid"] == pytest.approx(30)
    assert changes["intensities"] == {"blur": {"limits": pytest.approx((0.5, 1.5)), "probability": 0.2}}


def test_lengths_in_pixels_do_not_depend_on_the_size_of_a_pixel():
    section = AugmentationSection(blur_px=(0.5, 1))
    assert section.changes(3.0) == section.changes(1.0) == section.changes()


def test_every_change_reaches_its_function():
    section = AugmentationSection(
        mirror=["left_right"],
        gamma=(0.7, 1.5),
        bias_field=0.3,
        bias_field_nodes=5,
        blur_px=(0.5, 1),
        low_resolution=2,
        noise=0.05,
        noise_probability=1,
    )
    changes = section.changes()
    assert changes["mirror"] == ["left_right"]
    assert changes["intensities"] == {
        "gamma": {"limits": (0.7, 1.5), "probability": 0.3},
        "bias_field": {"sd": 0.3, "nodes": 5, "probability": 0.3},
        "blur": {"limits": (0.5, 1), "probability": 0.2},
        "low_resolution": {"largest": 2, "probability": 0.25},
        "noise": {"largest_sd": 0.05, "probability": 1},
    }


@both
@pytest.mark.parametrize(
    ("in_mm", "other", "value"),
    [("translation_mm", "translation", 0.1), ("elastic_mm", "elastic_px", 2), ("elastic_grid_mm", "elastic_grid", 8)],
)
def test_a_length_has_exactly_one_form(section, in_mm, other, value):
    with pytest.raises(ValidationError, match=f"{in_mm}: {other} is given too, and both set the same length"):
        section(**{in_mm: 5, other: value})
    with pytest.raises(ValidationError, match=f"{other}: is null; give a number, or {in_mm}"):
        section(**{other: None})
    assert getattr(section(**{in_mm: 5}), other) is None


def test_blur_has_at_most_one_form():
    with pytest.raises(ValidationError, match="blur_mm: blur_px is given too"):
        AugmentationSection(blur_px=(1, 2), blur_mm=(1, 2))
    assert AugmentationSection(blur_px=None).blur_px is None


@both
def test_a_resolved_section_with_lengths_in_mm_can_be_read_again(section):
    found = section(elastic_mm=7, translation_mm=3, blur_mm=(1, 4))
    assert section.model_validate(found.model_dump(mode="json")) == found


def test_elastic_in_mm_takes_the_size_of_a_pixel_from_the_config():
    config = load(CHAOS, "elastic_px=null", "elastic_mm=7.5")
    assert config.finetuning.augmentation.changes(config.pixel_mm())["elastic_px"] == pytest.approx(7.5 / 5.0)


@pytest.mark.parametrize(
    ("path", "overrides", "message"),
    [
        (
            LGG,
            ["translation_mm=5", "translation=null"],
            "translation_mm: the size of a pixel in mm is not known, data.voxel_size_known is false; give translation",
        ),
        (LGG, ["blur_mm=[1, 2]"], "blur_mm: the size of a pixel in mm is not known"),
        (
            "configs/papers/liver_arxiv2022.yaml",
            ["elastic_grid_mm=50", "elastic_grid=null"],
            "elastic_grid_mm: the size of a pixel in mm is not known, slices.pixel_size is null; give elastic_grid",
        ),
        (CHAOS, ["mirror=[left_right]"], "(right_kidney, left_kidney); remove left_right"),
        (CHAOS, ["mirror=[inferior_superior]"], "inferior_superior lies across slices; it is for network.rank 3"),
        (CHAOS, ["mirror=[anterior_posterior, anterior_posterior]"], "names an axis twice"),
        (CHAOS, ["gamma=[1.5, 0.7]"], "must be the smallest and the largest value, in this order"),
        (CHAOS, ["low_resolution=0.5"], "low_resolution"),
        (CHAOS, ["noise_probability=2"], "noise_probability"),
        (CHAOS, ["noise=-1"], "noise"),
        (CHAOS, ["elastic_px=-1"], "elastic_px"),
    ],
)
def test_a_mistake_is_named(path, overrides, message):
    with pytest.raises(InputError) as error:
        load(path, *overrides)
    (line,) = error.value.lines
    assert "finetuning.augmentation" in line and message in line


def test_labels_without_sides_may_be_mirrored():
    assert load(LGG, "mirror=[left_right]").finetuning.augmentation.mirror == ["left_right"]


@pytest.mark.parametrize(
    ("name", "has_a_side"),
    [("left_kidney", True), ("KidneyRight", True), ("RIGHT", True), ("bright_spot", False), ("liver", False)],
)
def test_sides_are_found_in_names(name, has_a_side):
    section = AugmentationSection(mirror=["left_right"])
    assert bool(list(section.mistakes("here", 2, 1.0, "", [name]))) == has_a_side


def test_volumes_have_no_lengths_in_mm_but_a_third_axis():
    section = SynthesisAugmentationSection(elastic_mm=5, mirror=["inferior_superior"])
    assert list(section.mistakes("here", 3, 1.0, "", [])) == [
        "here.elastic_mm: the distance of slices differs between volumes; give elastic_px"
    ]
