"""The config of contrast synthesis: every mistake in one line, and hashes of all settings that affect a result."""

import pytest

from utils.checks import InputError
from utils.config.load import load_config

SYNTHESIS = """
name: brain
work_dir: runs/brain
data:
  root: scans
  contrasts:
    t1: "{subject}/t1.nii.gz"
    flair: "{subject}/flair.nii.gz"
    echoes: {file: "{subject}/echoes.nii.gz", volumes: 2}
  splits: splits.json
constraint_maps: {contrasts: [t1, flair]}
slices: {image_size: [30, 40]}
network: {filters: [4, 8, 8], rank: 3}
crops: {size: [16, 16, 8]}
pretraining:
  contrasts: [flair]
  stages:
    global: {method: global, training: {epochs: 1, batch_size: 4, learning_rate: 1e-3}}
    constrained: {method: constrained, training: {epochs: 1, batch_size: 4, learning_rate: 1e-3}}
synthesis:
  inputs: [flair]
  targets: [t1, echoes_2]
  subjects_n: [1, 2]
  training: {epochs: 1, batch_size: 4, learning_rate: 1e-3}
"""
ALONE_FROM_RANDOM = ["pretraining=null", "synthesis.inits=[random]"]
SLICES = ["network.rank=2", "crops.size=[16, 16]", "slices.image_size=[32, 40]"]
FINETUNING = (
    "finetuning={contrasts: {t1: [t1]}, subjects_n: [1], training: {epochs: 1, batch_size: 1, learning_rate: 1}}"
)
MISTAKES_OF_SYNTHESIS = [
    (["synthesis.targets=[t1, flair]"], "targets: 'flair' is among the inputs too; a contrast can be only one of them"),
    (["synthesis.inputs=[echoes]"], "synthesis.targets: 'echoes_2' is among the inputs too"),
    (["synthesis.inputs=[echoes_1]", "synthesis.targets=[echoes]"], "targets: 'echoes_1' is among the inputs too"),
    (["synthesis.inputs=[flair, flair]"], "inputs: 'flair' is named twice; name each contrast once"),
    (["synthesis.targets=[echoes_1, echoes]"], "targets: 'echoes_1' is named twice; name each contrast once"),
    (
        ["synthesis.targets=[echos_2]"],
        "synthesis.targets: 'echos_2' is not one of data.contrasts .*did you mean 'echoes",
    ),
    (["synthesis.inputs=[flare]"], "synthesis.inputs: 'flare' is not one of data.contrasts .*; did you mean 'flair'?"),
    (["synthesis.targets=[]"], "synthesis.targets: .*at least 1 item"),
    (["crops.size=[32, 16, 8]"], r"crops.size: \[32, 16, 8\] is larger than slices.image_size \[30, 40\]; use smaller"),
    (["crops.size=[16, 44, 8]"], r"crops.size: \[16, 44, 8\] is larger than slices.image_size"),
    (
        [*ALONE_FROM_RANDOM, "crops.size=[16, 16, 6]"],
        r"crops.size: \[16, 16, 6\] must be multiples of 4, because .* 3 levels",
    ),
    (["crops.size=[16, 16]"], r"crops.size: \[16, 16\] has 2 numbers, but network.rank is 3"),
    ([*SLICES, "crops.size=[16, 16, 8]"], r"crops.size: \[16, 16, 8\] has 3 numbers, but network.rank is 2"),
    (["crops.size=[16]"], "crops.size: .*at least 2 items"),
    (["crops.size=[16, 0, 8]"], "crops.size.1: .*greater than 0"),
    (["crops=null", "synthesis=null"], r"network.rank: 3: needs the section 'crops:', .* \{size: \[64, 64, 64\]\}"),
    (["crops=null", *SLICES[:1], *SLICES[2:]], r"synthesis: needs the section 'crops:', .* \{size: \[64, 64\]\}"),
    (["slices=null"], "synthesis: needs the section 'slices:'"),
    (["network.rank=4"], "network.rank: Input should be 2 or 3"),
    (["data.label=x{subject}", "data.labels={a: [1]}", FINETUNING], "finetuning: segments slice by slice; set network"),
    (["pretraining.contrasts_as=samples"], "contrasts_as: samples is for slices; with network.rank 3 take channels"),
    (
        ["pretraining.stages.global.n_partitions=2"],
        "pretraining.stages.global.n_partitions: is for slices; remove it",
    ),
    (["pretraining.stages.constrained.patch_size=3"], r"patch_size: 3 pixels .* do not divide \[16, 16, 8\]"),
    (["synthesis.inits=[random, local]"], "synthesis.inits: 'local' is neither random nor a stage of pretraining"),
    (["pretraining=null"], r"synthesis.inits: 'constrained' is neither random nor a stage of pretraining \(random\)"),
    (["synthesis.evaluate_every=2"], "synthesis: evaluate_every: 2 is more than training.epochs"),
    (["synthesis.loss.name=l2"], "synthesis.loss.name: Input should be 'l1', 'mse' or 'l1_ssim'"),
    (["synthesis.overlap=1"], "synthesis.overlap: .*less than 1"),
    (["synthesis.target=[t1]"], "synthesis.target: unknown key; did you mean 'targets'"),
]


@pytest.fixture
def brain(tmp_path):
    path = tmp_path / "brain.yaml"
    path.write_text(SYNTHESIS)
    return path


@pytest.mark.parametrize(
    ("overrides", "message"), MISTAKES_OF_SYNTHESIS, ids=[" ".join(overrides) for overrides, _ in MISTAKES_OF_SYNTHESIS]
)
def test_a_mistake_of_synthesis_is_named_in_one_line(brain, overrides, message):
    with pytest.raises(InputError, match=message) as caught:
        load_config(brain, overrides)
    assert len(caught.value.lines) == 1


def test_synthesis_works_without_maps_pretraining_or_volumes(brain):
    assert load_config(brain).image_size() == [16, 16, 8]
    flat = load_config(brain, SLICES)
    assert flat.image_size() == (32, 40)
    alone = load_config(brain, ["constraint_maps=null", *ALONE_FROM_RANDOM])
    assert alone.hash_of_synthesis("random") != load_config(brain).hash_of_synthesis("random")


def hashes_of_synthesis(path, *overrides):
    """Return the hashes of slices, pretrained stage, and cells from random weights and from the stage."""
    config = load_config(path, overrides)
    cells = [config.hash_of_synthesis(init) for init in ("random", "constrained")]
    return [config.hash_of_slices(), config.hash_of_stage("constrained"), *cells]


WHAT_CHANGES = [  # slices, stage, cell from random weights, cell from the stage
    ("network.remat=true", "----"),
    ("seed=4", "----"),
    ("work_dir=x", "----"),
    ("synthesis.subjects_n=[5]", "----"),
    ("synthesis.repeats=7", "----"),
    ("synthesis.inits=[random]", "----"),
    ("synthesis.augmentation={brightness: 0, contrast: 0}", "----"),  # the default, given explicitly
    ("crops.size=[8, 16, 8]", "-xxx"),
    ("crops.min_foreground=0.5", "-xxx"),
    ("crops.validation=5", "-xxx"),
    ("synthesis.overlap=0.25", "--xx"),
    ("synthesis.loss.name=l1_ssim", "--xx"),
    ("synthesis.inputs=[flair, echoes_1]", "--xx"),
    ("synthesis.targets=[t1]", "--xx"),
    ("synthesis.targets=[echoes_2, t1]", "--xx"),
    ("synthesis.augmentation.rotation_degrees=5", "--xx"),
    ("synthesis.training.batch_size=2", "--xx"),
    ("synthesis.training.head_first=0", "----"),
    ("synthesis.training.layer_decay=0.8", "--xx"),
    ("synthesis.training.keep=last", "--xx"),
    ("synthesis.fresh_levels=0", "----"),
    ("synthesis.fresh_levels=1", "--xx"),
    ("pretraining.stages.constrained.temperature=0.2", "-x-x"),
    ("network.filters=[4, 8, 16]", "-xxx"),
    ("constraint_maps.clusters=5", "xxxx"),
    ("slices.image_size=[32, 40]", "xxxx"),
]


@pytest.mark.parametrize(("override", "changes"), WHAT_CHANGES, ids=[override for override, _ in WHAT_CHANGES])
def test_a_hash_changes_with_what_shapes_the_result_and_with_nothing_else(brain, override, changes):
    pairs = zip(hashes_of_synthesis(brain), hashes_of_synthesis(brain, override), strict=True)
    assert "".join("x" if one != other else "-" for one, other in pairs) == changes


def test_crops_of_slices_shape_synthesis_but_not_pretraining_on_whole_slices(brain):
    one, other = hashes_of_synthesis(brain, *SLICES), hashes_of_synthesis(brain, *SLICES, "crops.validation=5")
    assert one[:2] == other[:2] and one[2] != other[2] and one[3] != other[3]
    volumes = hashes_of_synthesis(brain, "slices.image_size=[32, 40]")
    assert one[0] == volumes[0] and one[1] != volumes[1]
