"""Labels as lesions: what a config may contain; naming lesions leaves finished cells valid."""

import pytest

from tests.config_hashes import ROOT, hashes_of
from utils.checks import InputError
from utils.config.evaluation import OVERLAP
from utils.config.load import load_config

LGG, BRATS = (ROOT / "configs" / name for name in ("lgg_tcga.yaml", "papers/brats_medphys2024.yaml"))


def test_no_label_is_lesions_unless_a_config_says_so():
    settings = load_config(BRATS).evaluation
    assert settings.lesions == [] and settings.lesion_overlap == OVERLAP
    assert load_config(BRATS, ["evaluation.lesions=[whole_tumour]"]).evaluation.lesions == ["whole_tumour"]


@pytest.mark.parametrize(
    ("config", "override", "message"),
    [
        (LGG, "evaluation.lesions=[tumour]", r"evaluation.lesions: 'tumour' is not one of data.labels \(flair_abn"),
        (
            BRATS,
            "evaluation.lesions=[oedema]",
            r"'oedema' is not one of evaluation.regions \(whole_tumour, tumour_core",
        ),
        (BRATS, "evaluation.lesions=[whole_tumour, whole_tumour]", "evaluation: lesions: .* must name each label once"),
        (BRATS, "evaluation.lesion_overlap=0.5", "lesion_overlap: has no effect without lesions"),
        (LGG, "evaluation.lesion_overlap=0", "evaluation.lesion_overlap: Input should be greater than 0"),
        (LGG, "evaluation.lesion_overlap=50", "less than or equal to 1"),
    ],
)
def test_mistakes_are_explained(config, override, message):
    with pytest.raises(InputError, match=message):
        load_config(config, [override])


def test_naming_lesions_leaves_every_hash_and_another_overlap_changes_those_of_cells():
    """Naming lesions adds scores of the same predictions; another overlap changes the scores."""
    with_lesions, without = (hashes_of(load_config(LGG, [f"evaluation.lesions={value}"])) for value in (
        "[flair_abnormality]", "[]"
    ))  # fmt: skip
    assert with_lesions == without
    other = hashes_of(load_config(LGG, ["evaluation.lesions=[flair_abnormality]", "evaluation.lesion_overlap=0.5"]))
    assert {name for name in other if other[name] != without[name]} == {n for n in other if n.startswith("cell ")}
