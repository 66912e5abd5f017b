import shlex
from pathlib import Path

import pytest
import yaml

from utils.checks import InputError
from utils.command_line import from_command_line
from utils.config.load import load_config
from utils.config.schema import channel_names

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = sorted((ROOT / "configs").glob("**/*.yaml"))
SMALL = """
name: small
work_dir: runs/small
data:
  root: scans
  contrasts: {t1: "{subject}/t1.nii.gz", t2: "{subject}/t2.nii.gz"}
  label: "{subject}/label.nii.gz"
  labels: {kidney: [1]}
  splits: splits.json
constraint_maps: {contrasts: [t1, t2]}
slices: {image_size: [32, 32]}
network: {filters: [4, 8, 8]}
pretraining:
  contrasts: [t1]
  stages:
    global: {method: global, training: {epochs: 1, batch_size: 4, learning_rate: 1e-3}}
    constrained: {method: constrained, warm_start: global, training: {epochs: 1, batch_size: 4, learning_rate: 1e-3}}
finetuning:
  contrasts: {t1: [t1]}
  subjects_n: [1, 2]
  training: {epochs: 1, batch_size: 4, learning_rate: 1e-3}
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_every_config_loads(subtests):
    for path in CONFIGS:
        with subtests.test(path.stem):
            assert load_config(path).name == path.stem


def test_there_is_a_config_for_every_real_dataset():
    assert {"lgg_tcga", "chaos_mr", "brats2015_subset", "brain_4contrast"} <= {path.stem for path in CONFIGS}


def test_numbers_written_as_text_arrive_as_numbers(small):
    rate = load_config(small).finetuning.training.learning_rate
    assert yaml.safe_load("1e-3") == "1e-3" and rate == 1e-3 and isinstance(rate, float)


LOCAL = "{method: local, warm_start: global, training: {epochs: 1, batch_size: 4, learning_rate: 1e-3}"
MASKED = "{method: regression, training: {epochs: 1, batch_size: 4, learning_rate: 1e-3}"
ALONE = LOCAL.replace("warm_start: global, ", "")
MISTAKES = [
    ("finetuning.repeat=3", "finetuning.repeat: unknown key; did you mean 'repeats'"),
    (
        "pretraining.stages.constrained.temprature=1",
        "pretraining.stages.constrained.temprature: unknown key; did you mean 'temperature'",
    ),
    ("data.rot=x", "data.rot: unknown key; did you mean 'root'"),
    ("finetuning.repeats=yes", r"finetuning: repeats: found yes \(true or false\)"),
    ("seed=-1", r"seed: .*greater than or equal to 0 \(found -1\)"),
    ("finetuning.inits=[local]", "finetuning.inits: 'local' is neither random nor a stage"),
    ("finetuning.contrasts.t1=[t3]", r"finetuning.contrasts.t1: 't3' is not one of data.contrasts \(t1, t2\)"),
    ("slices.image_size=[30, 32]", r"image_size: \[30, 32\] must be multiples of 4"),
    ("pretraining.stages.global.warm_start=constrained", "'constrained' must come before 'global'"),
    ("data.label=null", "label and labels go together"),
    ("finetuning.loss={class_weights: {kidny: 2}}", "class_weights: 'kidny' is not one of data.labels"),
    ("data.splits={train: [a], val: [b]}", "data.splits.*test"),
    ("constraint_maps.contrasts=[t1]", "one channel; a contrast space needs at least two"),
    ("pretraining.stages.constrained.decoder_levels=3", "network.filters makes 2 decoder levels"),
    ("pretraining.stages.constrained.patch_size=5", "do not divide"),
    ("pretraining.stages.constrained.warm_start=globl", "neither a stage .global. nor a .npz file"),
    ("pretraining.stages.global.n_partitions=3", r"batch_size: 4 must be a multiple of n_partitions \(3\)"),
    ("pretraining.stages.global.partition_positives=true", "partition_positives: needs n_partitions"),
    (f"pretraining.stages.masked={MASKED}, block_mm: 8, block_px: 2}}", "give block_mm or block_px, not both"),
    (
        f"pretraining.stages.masked={MASKED}, block_mm: 8}}",
        "masked.block_mm: needs slices.pixel_size.* or give block_px",
    ),
    (f"pretraining.stages.masked={MASKED}, block_px: 32}}", "masked.block_px: a block of 32 pixels would hide a whole"),
    (f"pretraining.stages.detail={LOCAL}, decoder_levels: 3}}", "network.filters makes 2 decoder levels"),
    (f"pretraining.stages.detail={LOCAL}, region_size: 20}}", r"fewer than two regions fit into \[32, 32\]"),
    (
        f"pretraining.stages.detail={LOCAL.replace('warm_start: global, ', '')}}}",
        "freeze_encoder: the encoder would stay random",
    ),
    ("pretraining.stages.global.method=simclr", "'regression', 'global', 'local', 'constrained'"),
    ("data.labels={kidney: [1], liver: [1]}", "value 1 is named twice"),
    ("finetuning.evaluate_every=2", "more than training.epochs"),
    ("finetuning.training.warm_up=0.3", "training: warm_up 0.3: no epoch of 1 is left at the full rate; lower warm_up"),
    (
        "finetuning.training={epochs: 8, batch_size: 4, learning_rate: 1e-3, warm_up: 0.5, head_first: 0.5}",
        "head_first 0.5 and warm_up 0.5: no epoch of 8 is left",
    ),
    ("finetuning.training.head_learning_rate=1e-2", "head_learning_rate: has no effect without head_first"),
    ("finetuning.training.layer_decay=0", r"layer_decay: .*greater than 0 \(found 0\)"),
    ("finetuning.training.schedule=linear", "schedule: .*'plateau', 'cosine' or 'poly'"),
    ("pretraining.stages.global.training.head_first=0.5", "training.head_first: unknown key"),
    ("finetuning.loss={name: cross_entropy, cross_entropy_weight: 0.1}", "0.1 adds cross-entropy to itself"),
    ("finetuning.fresh_levels=3", "finetuning.fresh_levels: 3, but network.filters makes 2 decoder levels"),
    ("finetuning.fresh_levels=-1", "greater than or equal to 0"),
    ("finetuning.loss.cross_entropy=plain", "plain has no effect without a cross_entropy_weight"),
    ("constraint_maps.percentiles=[99, 1]", "must ascend"),
    ("slices.percentiles=[2, 98]", "constraint_maps.percentiles holds for both"),
    ("constraint_maps.spaces.t1=[t1]", "constraint_maps.spaces.t1: one channel"),
    ("constraint_maps.spaces={qc: [t1, t2]}", r"spaces.qc: constraint_maps/qc/ holds pictures"),
    ("pretraining.stages.constrained.space=t9", r"space: 't9' is not one of constraint_maps.spaces \(none\)"),
    ("constraint_maps=null", "stages.constrained: a constrained stage needs the section 'constraint_maps:'"),
    ("evaluation.regions={all: [organs]}", "evaluation.regions.all: 'organs' is not one of data.labels"),
]


@pytest.mark.parametrize(("override", "message"), MISTAKES, ids=[override for override, _ in MISTAKES])
def test_a_mistake_is_named_with_its_place(small, override, message):
    with pytest.raises(InputError, match=message):
        load_config(small, [override])


def test_all_mistakes_are_listed_at_once(small):
    with pytest.raises(InputError) as caught:
        load_config(small, ["finetuning.repeat=3", "seed=x", "data.rot=1"])
    assert len(caught.value.lines) == 3 and all(str(small) in line for line in caught.value.lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "line 2: key 'name' appears twice"),
        ("a: &x [1]\nb: *x\n", "line 2: aliases are not allowed"),
        ("a:\n\t- 1\n", "not a readable YAML file"),
        ("- 1\n", "holds a list, expected sections"),
        ("a: !!python/object/apply:os.system ['true']\n", "not a readable YAML file"),
    ],
)
def test_yaml_surprises_are_refused(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_config(path)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(InputError, match="not a readable YAML file"):
        load_config(path)


def test_hashes_ignore_seed_places_and_lists_of_the_grid_but_nothing_else(small):
    def cell_hash(*overrides):
        return load_config(small, overrides).hash_of_cell("t1", "constrained")

    same = ["seed=9", "work_dir=x", "data.root=y", "name=other", "finetuning.subjects_n=[5]", "finetuning.repeats=9"]
    assert {cell_hash(override) for override in same} == {cell_hash()}
    other = [
        "finetuning.training.epochs=2",
        "pretraining.stages.constrained.temperature=0.2",
        "pretraining.stages.global.temperature=0.2",  # the stage that this stage starts from
        "constraint_maps.clusters=5",
        "slices.min_foreground=0.2",
        "network.filters=[4, 8, 16]",
        "data.labels={kidney: [2]}",
    ]
    assert len({cell_hash(), *(cell_hash(override) for override in other)}) == len(other) + 1


def test_a_key_that_came_later_leaves_hashes_alone_until_it_is_used(small):
    def stage_hash(*overrides):
        return load_config(small, overrides).hash_of_stage("constrained")

    assert stage_hash() == "035660dac396"
    for stage, key, default, other in (
        ("global", "n_partitions", "null", "4"),
        ("constrained", "background_patches", "true", "false"),
        ("constrained", "nearest_share", "null", "0.1"),
        ("constrained", "anchors_share", "null", "0.1"),
        ("constrained", "patch_representation", "mean", "concatenation"),
        ("constrained", "head_normalization", "false", "true"),
    ):
        assert stage_hash(f"pretraining.stages.{stage}.{key}={default}") == stage_hash()
        assert stage_hash(f"pretraining.stages.{stage}.{key}={other}") != stage_hash()
    parts = "pretraining.stages.global.n_partitions=4"
    hashes = [
        stage_hash(parts, f"pretraining.stages.global.partition_positives={value}") for value in ("false", "true")
    ]
    assert hashes[0] == stage_hash(parts) != hashes[1]


def test_blocks_leave_the_hash_of_regression_alone_until_they_are_used(small):
    def stage(*more):
        words = [f"pretraining.stages.masked={MASKED}}}", "slices.pixel_size=2.5", *more]
        config = load_config(small, words)
        return config.hash_of_stage("masked"), config.pretraining.stages["masked"].block_edge(2.5)

    plain, key = stage(), "pretraining.stages.masked"
    assert stage(f"{key}.block_mm=null", f"{key}.block_px=null") == plain and plain[1] is None
    assert stage(f"{key}.block_px=4")[1] == stage(f"{key}.block_mm=9")[1] == 4  # 3.6 pixels
    assert stage(f"{key}.block_mm=0.5")[1] == 1
    assert len({plain[0], stage(f"{key}.block_px=4")[0], stage(f"{key}.block_mm=9")[0]}) == 3


# The elastic displacement originally had other defaults (deviation 23).
ELASTIC_BEFORE = "finetuning.augmentation={elastic_px: 2.0, elastic_grid: 8}"
LATER_TRAINING = {"schedule": ("plateau", "cosine"), "warm_up": ("0", "0.4"), "keep": ("best", "last")}
LATER_FINETUNING = LATER_TRAINING | {
    "head_first": ("0", "0.25"),
    "layer_decay": ("1", "0.8"),
    "head_learning_rate": ("null", "0.1"),
}


def test_keys_of_a_schedule_leave_hashes_alone_until_they_are_used(small):
    def hashes(*overrides):
        config = load_config(small, overrides)
        return config.hash_of_stage("global"), config.hash_of_cell("t1", "random")

    assert hashes(ELASTIC_BEFORE) == ("92f313cf5cd6", "ab77e27bbf1c")
    base = ["pretraining.stages.global.training.epochs=9", "finetuning.training.epochs=9"]
    stage, cell = hashes(*base)
    for key, (default, other) in LATER_TRAINING.items():
        assert hashes(*base, f"pretraining.stages.global.training.{key}={default}") == (stage, cell)
        assert hashes(*base, f"pretraining.stages.global.training.{key}={other}")[0] != stage
    found = {cell}
    for key, (default, other) in LATER_FINETUNING.items():
        more = ["finetuning.training.head_first=0.5"] * (key == "head_learning_rate")
        assert hashes(*base, f"finetuning.training.{key}={default}") == (stage, cell)
        found.add(hashes(*base, *more, f"finetuning.training.{key}={other}")[1])
    for key, default, other in (("head_block", "false", "true"), ("fresh_levels", "0", "1")):
        assert hashes(*base, f"finetuning.{key}={default}") == (stage, cell)
        found.add(hashes(*base, f"finetuning.{key}={other}")[1])
    loss = ["finetuning.loss.cross_entropy_weight=0.1"]
    assert hashes(*base, *loss, "finetuning.loss.cross_entropy=balanced") == hashes(*base, *loss)
    found |= {hashes(*base, *loss, *more)[1] for more in ([], ["finetuning.loss.cross_entropy=plain"])}
    assert len(found) == 1 + len(LATER_FINETUNING) + 4


# From the version before contrast synthesis: maps, slices, the stage `constrained` and the cells that start from it.
KEYS_IN_USE = [
    "constraint_maps.spaces={late: [t2, t1]}",
    "pretraining.stages.constrained.space=late",
    "pretraining.contrasts_as=samples",
    "evaluation.regions={all: [kidney]}",
    "finetuning.loss={name: dice}",
]
HASHES_BEFORE_SYNTHESIS = [
    ([ELASTIC_BEFORE], ["a7280fad0ea6", "e67e3306f9f8", "035660dac396", "775fd634d564"]),
    ([*KEYS_IN_USE, ELASTIC_BEFORE], ["26ddbc3b8ad8", "9d133b6479c9", "5f97abe26b0b", "91ca5a6a0c95"]),
]


@pytest.mark.parametrize(("overrides", "before"), HASHES_BEFORE_SYNTHESIS, ids=["plain", "keys in use"])
@pytest.mark.parametrize("more", [[], ["network.rank=2"], ["network.remat=true"], ["crops={size: [16, 16]}"]])
def test_configs_from_before_synthesis_keep_their_hashes(small, overrides, before, more):
    config = load_config(small, [*overrides, *more])
    found = [config.hash_of_maps(), config.hash_of_slices(), config.hash_of_stage("constrained")]
    assert [*found, config.hash_of_cell("t1", "constrained")] == before


def test_random_initialisation_does_not_depend_on_pretraining(small):
    def cell_hash(*overrides):
        return load_config(small, overrides).hash_of_cell("t1", "random")

    assert cell_hash() == cell_hash("pretraining.stages.constrained.temperature=0.2")


def test_a_series_stands_for_its_volumes():
    contrasts = {"t1": "a", "echoes": {"file": "b", "volumes": 3}}
    assert channel_names(contrasts) == ["t1", "echoes_1", "echoes_2", "echoes_3"]
    assert channel_names(contrasts, ["echoes_2", "t1"]) == ["echoes_2", "t1"]


def test_command_line(small, tmp_path, capsys):
    words = [
        "--config",
        str(small),
        "--work-dir",
        str(tmp_path),
        "--set",
        "seed=4",
        "name=b",
        "--set",
        "data.root=/scans",
    ]
    config, options = from_command_line("Step", words)
    again, _ = from_command_line("Next step", shlex.split(options.again))
    assert again == config and from_command_line("Step", words[:2])[1].again == f"--config {small}"
    assert config.seed == 4 and config.name == "b" and config.work_dir == tmp_path and str(config.data.root) == "/scans"
    with pytest.raises(InputError, match="this step needs the section 'pretraining:'"):
        from_command_line(
            "Step",
            ["--config", str(small), "--set", "pretraining=null", "--set", "finetuning.inits=[random]"],
            needs=("pretraining",),
        )
    with pytest.raises(InputError, match="expected key.path=value"):
        from_command_line("Step", [*words, "--set", "seed"])
