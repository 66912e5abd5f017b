"""The grid through Snakemake: what is made, what is redone after a change, and a small run from scans to tables."""

import functools
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import simulate_cohort
from tests.warm import warm_python
from utils.config.load import load_config

ROOT = Path(__file__).resolve().parents[1]
SNAKEMAKE = ROOT / ".venv-grid" / "bin" / "snakemake"
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "KERAS_BACKEND"))}
TABLE = ROOT / "configs" / "renal_table_simulated.yaml"


pytestmark = pytest.mark.skipif(not SNAKEMAKE.exists(), reason="Snakemake is not installed; type: make install-grid")


@pytest.fixture(scope="module")
def warm():
    """Return the words that start Snakemake in a fork of a process that has already loaded it."""
    with warm_python(SNAKEMAKE.with_name("python"), ["snakemake.cli"], ENVIRONMENT) as python:
        yield [*python, "-m", "snakemake"]


@pytest.fixture(scope="module")
def snakemake(warm):
    return functools.partial(run_snakemake, warm)


@pytest.fixture(scope="module")
def dry_run(snakemake):
    """Do a dry run that must succeed; returns the jobs that it lists."""

    def run(folder, config, *words, **values):
        code, output = snakemake(folder, config, "--dry-run", *words, **values)
        assert code == 0, output
        return jobs_of(output)

    return run


def run_snakemake(start, folder, config, *words, profile=None, root=ROOT, **values):
    """Run Snakemake in a separate folder with the repository's default profile; `values` are passed to --config."""
    command = [*start, "--snakefile", root / "Snakefile", "--directory", folder, "--cores", 2, *words]
    command += ["--workflow-profile", ROOT / "profiles" / "default", *(["--profile", profile] if profile else [])]
    command += ["--config", f"dataset={config}", *(f"{key}={value}" for key, value in values.items())]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=900, env=ENVIRONMENT)
    return done.returncode, done.stdout + done.stderr


def jobs_of(output):
    """Return {rule: number of jobs} of a dry run."""
    if "Nothing to be done" in output:
        return {}
    table = output.split("Job stats:")[1].split("total")[0]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE) if rule != "all"}


def fabricate(config):
    """Write the files of finished scripts in the order of the steps; no step reads them here."""
    work, made = config.work_dir, ["constraint_maps/command.txt"]
    made += [f"h5/{name}.h5" for name in ("pretrain_train", "pretrain_val", "annotated")]
    made += [f"pretraining/{stage}/weights.npz" for stage in config.pretraining.stages]
    contents, cells = dict.fromkeys(made, ""), {}
    if grid := config.finetuning:
        for contrasts, init in itertools.product(grid.contrasts, grid.inits):
            cells[f"finetuning/{contrasts}/{init}"] = config.hash_of_cell(contrasts, init), grid
    if grid := config.synthesis:
        contents["h5/volumes.h5"] = ""
        cells |= {f"synthesis/{init}": (config.hash_of_synthesis(init), grid) for init in grid.inits}
    for folder, (config_hash, grid) in cells.items():
        metrics = json.dumps({"config_hash": config_hash, "seed": config.seed})
        for n, repeat in itertools.product(grid.subjects_n, range(grid.repeats)):
            contents[f"{folder}/n{n:02d}/r{repeat}/metrics.json"] = metrics
    contents["report/index.html"] = ""
    for moment, (name, text) in enumerate(contents.items()):
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (moment, moment))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Return the config of the simulated table with two of its contrasts and a separate work dir."""
    folder = tmp_path_factory.mktemp("grid")
    plain = yaml.safe_load(TABLE.read_text()) | {"work_dir": str(folder / "work")}
    plain["finetuning"]["contrasts"] = {name: [name] for name in ("t1w", "dwi")}
    (folder / "table.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    return folder / "table.yaml"


@pytest.fixture(scope="module")
def finished(config, snakemake, dry_run):
    """Return finished work that was made by the scripts and made known to Snakemake with --touch."""
    fabricate(load_config(config))
    assert dry_run(config.parent, config) == {}
    code, output = snakemake(config.parent, config, "--touch", "--forceall")
    assert code == 0, output
    return config


CELLS = {"cell": 24, "tables": 1}
CHANGES = {
    "finetuning.training.learning_rate=1e-4": CELLS,
    "pretraining.stages.global.temperature=0.2": {"pretrain": 2, "cell": 12, "tables": 1},
    "constraint_maps.clusters=5": {"maps": 1, "slices": 1, "pretrain": 2, **CELLS},
    "finetuning.repeats=1": {"tables": 1},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_value_makes_again_what_depends_on_it_and_nothing_else(finished, dry_run, change):
    assert dry_run(finished.parent, finished, set=change) == CHANGES[change]


def test_a_missing_cell_alone_is_made(finished, dry_run):
    work = load_config(finished).work_dir
    (work / "finetuning/t1w/random/n02/r0/metrics.json").rename(work / "aside")
    try:
        assert dry_run(finished.parent, finished) == {"cell": 1, "tables": 1}
    finally:
        (work / "aside").rename(work / "finetuning/t1w/random/n02/r0/metrics.json")


def test_results_of_another_config_are_not_taken_for_finished(snakemake, config, tmp_path):
    fabricate(load_config(config, work_dir=tmp_path / "work"))
    values = {"work_dir": tmp_path / "work", "set": "finetuning.training.learning_rate=1e-4"}
    code, output = snakemake(tmp_path, config, "--dry-run", **values)
    assert code == 1 and "made with another config or seed, and not by Snakemake" in output


def test_folds_stages_and_missing_steps(snakemake, config, tmp_path):
    plain = yaml.safe_load(config.read_text())
    plain["data"]["splits"] = {"folds": 3, "validation": 2}
    plain["finetuning"]["inits"] = ["random"]
    del plain["constraint_maps"], plain["pretraining"]
    (tmp_path / "folds.yaml").write_text(yaml.safe_dump(plain))
    code, output = snakemake(tmp_path, tmp_path / "folds.yaml", "--dry-run", "--printshellcmds")
    assert code == 0 and jobs_of(output) == {"slices": 1, "cell": 36, "tables": 1}
    assert "--folds 2 --contrasts dwi --init random --subjects-n 8 --only-repeats 1" in output


def test_the_suite_and_its_work_may_lie_in_folders_with_spaces(snakemake, config, tmp_path):
    suite, work = tmp_path / "my 'own' suite", tmp_path / "my work"
    suite.mkdir()
    shutil.copy(ROOT / "Snakefile", suite)
    for path in [ROOT / "utils", ROOT / ".venv", *ROOT.glob("*.py")]:
        (suite / path.name).symlink_to(path)
    path = with_synthesis(config, tmp_path)
    code, output = snakemake(tmp_path, path, "--dry-run", "--printshellcmds", root=suite, work_dir=work)
    assert code == 0, output
    lines = [line for line in output.splitlines() if "Command:" not in line]  # Snakemake's own
    commands = [line for line in lines if ".py" in line and " --config " in line]
    called = set()
    for command in commands:
        words = shlex.split(command)
        place = next(n for n, word in enumerate(words) if word.endswith(".py"))
        assert words[place - 1] == str(suite / ".venv/bin/python") and Path(words[place]).parent == suite
        assert words[words.index("--work-dir") + 1] == str(work)
        called.add(Path(words[place]).name)
    steps = "generate_constraint_maps generate_h5_pretraining constrained_contrastive_learning finetune_segmentation "
    assert called == {f"{step}.py" for step in (steps + "finetune_synthesis reproduce_tables").split()}


SYNTHESIS = {
    "inputs": ["t1w"],
    "targets": ["dwi"],
    "inits": ["random", "constrained"],
    "subjects_n": [2, 4],
    "repeats": 3,
    "training": {"epochs": 1, "batch_size": 2, "learning_rate": 1e-3},
}


def with_synthesis(config, folder, *left_out, **data):
    """Return the same config with contrast synthesis added and some sections removed."""
    plain = yaml.safe_load(config.read_text()) | {"crops": {"size": [16, 16]}, "synthesis": SYNTHESIS}
    plain["network"] = {"filters": [4, 8]}
    plain["data"] |= data
    for section in left_out:
        del plain[section]
    path = folder / "synthesis.yaml"
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path


def test_a_config_with_both_grids_makes_both_and_remakes_only_what_changed(snakemake, dry_run, config, tmp_path):
    path, values = with_synthesis(config, tmp_path), {"work_dir": tmp_path / "work"}
    fabricate(load_config(path, work_dir=tmp_path / "work"))
    code, output = snakemake(tmp_path, path, "--touch", "--forceall", **values)
    assert code == 0, output
    change = "synthesis.training.learning_rate=1e-4"
    assert dry_run(tmp_path, path, set=change, **values) == {"synthesis": 12, "tables": 1}
    change = "pretraining.stages.global.temperature=0.2"
    changed = {"pretrain": 2, "cell": 12, "synthesis": 6, "tables": 1}
    assert dry_run(tmp_path, path, set=change, **values) == changed
    (tmp_path / "work/synthesis/random/n04/r1/metrics.json").unlink()
    assert dry_run(tmp_path, path, **values) == {"synthesis": 1, "tables": 1}


def test_synthesis_alone_in_folds_shares_one_file_of_volumes(snakemake, config, tmp_path):
    splits = {"folds": 3, "validation": 2}
    path = with_synthesis(config, tmp_path, "finetuning", label=None, labels={}, splits=splits)
    code, output = snakemake(tmp_path, path, "--dry-run", "--printshellcmds", work_dir=tmp_path / "work")
    assert code == 0, output
    assert jobs_of(output) == {"maps": 1, "slices": 1, "pretrain": 6, "synthesis": 36, "tables": 1}
    assert re.search(r"finetune_synthesis.py .*--folds 2 --init constrained --subjects-n 4 --only-repeats 1", output)
    (slices,) = re.findall(r"^rule slices:\n.*?^    output: (.*?)$", output, re.MULTILINE | re.DOTALL)
    volumes = [file for file in slices.split(", ") if file.endswith("volumes.h5")]
    assert volumes == [str(tmp_path / "work/h5/volumes.h5")] and "annotated" not in slices
    inputs = re.findall(r"^rule synthesis:\n    input: (.*?)$", output, re.MULTILINE)
    starts = [match[1] for line in inputs if (match := re.search(r"fold(\d)/pretraining/constrained/weights", line))]
    assert sorted(starts) == sorted("012" * 6) and all(volumes[0] in line for line in inputs)


def test_synthesis_made_with_another_config_is_not_taken_for_finished(snakemake, config, tmp_path):
    path = with_synthesis(config, tmp_path, "finetuning")
    fabricate(load_config(path, work_dir=tmp_path / "work"))
    values = {"work_dir": tmp_path / "work", "set": "synthesis.overlap=0.25"}
    code, output = snakemake(tmp_path, path, "--dry-run", **values)
    assert code == 1 and re.search(r"synthesis/random/n02/r0: made with another config or seed", output)


def test_mistakes_are_reported_as_by_the_scripts(snakemake, config, tmp_path):
    code, output = snakemake(tmp_path, config, "--dry-run", set="finetuning.repeat=1")
    assert code == 1 and "did you mean 'repeats'?" in output


def test_a_cluster_gets_gpus_for_training_and_time_for_every_job(snakemake, config, tmp_path):
    profile = ROOT / "profiles" / "slurm"
    path = with_synthesis(config, tmp_path)
    code, output = snakemake(tmp_path, path, "--dry-run", profile=profile, work_dir=tmp_path / "work")
    assert code == 0, output
    made = {"maps": 1, "slices": 1, "pretrain": 2, "cell": 24, "synthesis": 12, "tables": 1}
    assert jobs_of(output) == made
    jobs = re.findall(r"^rule (\w+):\n.*?^    resources: (.*?)$", output, re.MULTILINE | re.DOTALL)
    assert {rule for rule, resources in jobs if "gpu=1" in resources} == {"pretrain", "cell", "synthesis"}
    times = {rule: int(re.search(r"runtime=(\d+)", resources)[1]) for rule, resources in jobs}
    expected = {"maps": 240, "pretrain": 1440, "cell": 240, "synthesis": 720}
    assert {rule: times[rule] for rule in expected} == expected


def test_from_scans_to_tables(dry_run, tmp_path):
    """`make table-renal-simulated`, reduced: one contrast, one initialisation, one N, one repeat, two epochs."""
    words = ["--subjects", 4, "--anatomy", "renal", "--seed", 3, "--shape", 48, 40, 6]
    assert simulate_cohort.main([*map(str, ("--out", tmp_path / "scans", *words))]) in (None, 0)
    changes = {
        "data.root": tmp_path / "scans",
        "constraint_maps.clusters": 5,
        "slices.pixel_size": 8,
        "network.filters": "[4,8]",
        "pretraining.contrasts": "[t1w,dwi]",
        "pretraining.stages.constrained.training.epochs": 2,
        "finetuning.contrasts.t1w": "[t1w]",
        "finetuning.inits": "[constrained]",
        "finetuning.subjects_n": "[2]",
        "finetuning.repeats": 1,
        "finetuning.training.epochs": 2,
        "finetuning.evaluate_every": 2,
        "finetuning.training.steps_per_epoch": 2,
    }
    plain = yaml.safe_load(TABLE.read_text())
    plain["finetuning"]["contrasts"] = {}
    plain["pretraining"]["stages"] = {
        "constrained": plain["pretraining"]["stages"]["constrained"] | {"warm_start": None}
    }
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(plain))
    values = {"work_dir": tmp_path / "work", "set": " ".join(f"{key}={value}" for key, value in changes.items())}
    code, output = run_snakemake([SNAKEMAKE], tmp_path, tmp_path / "table.yaml", **values)  # as typed by users
    assert code == 0, output
    metrics = json.loads((tmp_path / "work/finetuning/t1w/constrained/n02/r0/metrics.json").read_text())
    assert metrics["annotated_available"] == 2 and len(metrics["per_subject"]) == 2
    assert 0 < metrics["compile_s"] < metrics["duration_s"]
    assert "simulated" in (tmp_path / "work/report/index.html").read_text().lower()
    assert dry_run(tmp_path, tmp_path / "table.yaml", **values) == {}
