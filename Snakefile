# The whole grid as a graph of files: maps -> HDF5 -> pretraining stage by stage -> one job per cell -> tables.
#
#   make install-grid
#   .venv-grid/bin/snakemake --cores 2 --config dataset=configs/lgg_tcga.yaml
#   .venv-grid/bin/snakemake --cores 2 --config dataset=configs/lgg_tcga.yaml work_dir=runs/x set="seed=1"
#   .venv-grid/bin/snakemake --cores 16 --resources gpu=1 --config dataset=configs/lgg_tcga.yaml
#   .venv-grid/bin/snakemake --profile profiles/slurm --config dataset=configs/lgg_tcga.yaml
#
# With -n it lists what would run, and why. Each job is one call of a script that can also be run by hand in the same
# work dir. A stopped job resumes: its checkpoint and finished maps are not declared as output, because Snakemake deletes
# the declared output of unfinished jobs. After kill -9 or a power cut, call it once with --unlock first.
# profiles/default says what is made again, and when.
import functools
import itertools
import json
import shlex
from pathlib import Path

from snakemake.exceptions import WorkflowError

from utils.checks import InputError
from utils.config.load import load_config
from utils.config.schema import fingerprint
from utils.work_dir import METRICS


def read_config():
    """Return the dataset's `Config`, checked as the scripts do, and the words that give a script the same one."""
    if "dataset" not in config:
        raise WorkflowError("which dataset? add --config dataset=configs/NAME.yaml")
    overrides = config.get("set") or []
    overrides = shlex.split(overrides) if isinstance(overrides, str) else overrides
    try:
        dataset = load_config(config["dataset"], overrides, config.get("work_dir"))
    except InputError as error:
        raise WorkflowError("\n".join(error.lines)) from None
    words = ["--config", config["dataset"], "--work-dir", dataset.work_dir]
    return dataset, shlex.join(map(str, [*words, *(["--set", *overrides] if overrides else [])]))


def of(split):
    """Paths of a split, whose name ends in a slash where there are folds."""
    return PATHS.of(split.rstrip("/"))


def of_any_split(path):
    """The pattern of a path that each split has."""
    return f"{WORK}/{{split}}{path.relative_to(WORK).as_posix()}"


DATASET, OPTIONS = read_config()
PATHS, WORK, HERE = DATASET.work, DATASET.work_dir, Path(workflow.basedir)
PYTHON = HERE / ".venv" / "bin" / "python"
PYTHON = shlex.quote(str(PYTHON)) if PYTHON.exists() else "python"
SCRIPTS = shlex.quote(str(HERE))  # for the shell; a folder may have spaces
STAGES = DATASET.pretraining.stages if DATASET.pretraining else {}
# Without cross-validation, the only split lies in the work dir itself.
SPLITS = [f"fold{number}/" for number in range(getattr(DATASET.data.splits, "folds", 0))] or [""]
STORES = ["pretrain_train", "pretrain_val", *(["annotated"] if DATASET.data.labels else [])]
STORES = [str(of(split).store(part)) for split, part in itertools.product(SPLITS, STORES)]
STORES += [str(PATHS.volumes)] if DATASET.synthesis else []  # one for all folds

MAPS, PAGE = str(PATHS.maps() / "command.txt"), PATHS.report / "index.html"
CELL = PATHS.cell("finetuning", "{contrasts}", "{init}", n="{n}", repeat="{repeat}")
SYNTHESIS = PATHS.cell("synthesis", "{init}", n="{n}", repeat="{repeat}")

hash_of_stage = functools.cache(DATASET.hash_of_stage)
hash_of_cell = functools.cache(DATASET.hash_of_cell)
hash_of_synthesis = functools.cache(DATASET.hash_of_synthesis)


def cells():
    """Yield `(split, kind, init, n, repeat)` of all cells; `kind` is the folder of the grid, such as `synthesis`."""
    if grid := DATASET.finetuning:
        kinds = [f"finetuning/{contrasts}" for contrasts in grid.contrasts]
        yield from itertools.product(SPLITS, kinds, grid.inits, grid.subjects_n, range(grid.repeats))
    if grid := DATASET.synthesis:
        yield from itertools.product(SPLITS, ["synthesis"], grid.inits, grid.subjects_n, range(grid.repeats))


def metrics(split, kind, init, n, repeat):
    return str(of(split).cell(*kind.split("/"), init, n=n, repeat=repeat) / METRICS)


def hash_of(kind, init):
    """Hash of what shapes the cells of one kind and one initialisation."""
    if kind == "synthesis":
        return hash_of_synthesis(init)
    return hash_of_cell(kind.removeprefix("finetuning/"), init)


def weights(split, stage):
    return str(of(split).stage_weights(stage))


def weights_of(split, source):
    """List the weights that something starts from: those of a stage, of a file, or none."""
    if source in (None, "random"):
        return []
    return weights(split, source) if source in STAGES else source


def fold_option(split):
    return f"--folds {split.removeprefix('fold').rstrip('/')}" if split else ""


def results():
    """List what the config asks for; what is only a step on the way may be deleted afterwards."""
    made = [metrics(*cell) for cell in cells()]
    made += [weights(split, stage) for split, stage in itertools.product(SPLITS, STAGES)]
    if DATASET.finetuning or DATASET.synthesis:
        return [str(PAGE), *made]
    return made or (STORES if DATASET.slices else MAPS)


def refuse_cells_made_otherwise():
    """Snakemake sees a changed config only in results that it made itself; of others it would say: all is done."""
    has_memory = any(Path(".snakemake", "metadata").glob("*"))
    for split, kind, init, n, repeat in cells():
        path = Path(metrics(split, kind, init, n, repeat))
        is_ours = has_memory and path.with_name("snakemake.log").exists()
        if is_ours or not path.exists():
            continue
        found = json.loads(path.read_text())
        if (found["config_hash"], found["seed"]) != (hash_of(kind, init), DATASET.seed):
            raise WorkflowError(
                f"{path.parent}: made with another config or seed, and not by Snakemake, which therefore cannot know "
                "what else is outdated; choose another work_dir=DIR, or delete this one"
            )


refuse_cells_made_otherwise()


wildcard_constraints:
    split=r"(fold\d+/)?",
    stage="|".join(STAGES) or "none",
    n=r"\d+",
    repeat=r"\d+",


localrules:
    all,


rule all:
    input:
        results(),


if DATASET.constraint_maps:

    rule maps:
        # command.txt represents the maps: summary.csv lists the finished ones, which a resumed job needs.
        # The script refuses maps made with other settings, so they are overwritten.
        output:
            MAPS,
        params:
            made_from=DATASET.hash_of_maps(),
            seed=DATASET.seed,
            summary=str(PATHS.map_summary()),
        log:
            str(PATHS.maps() / "snakemake.log"),
        threads: 16
        shell:
            "grep -qs ',{params.made_from},{params.seed},' {params.summary:q} || overwrite=--overwrite; "
            "{PYTHON} {SCRIPTS}/generate_constraint_maps.py {OPTIONS} --jobs {threads} ${{overwrite-}} 2> {log:q} && "
            "touch {output:q}"


if DATASET.slices:

    rule slices:
        input:
            MAPS if DATASET.constraint_maps else [],
        output:
            STORES,
        params:
            made_from=DATASET.hash_of_slices(),
            seed=DATASET.seed,
        log:
            str(PATHS.volumes.with_name("snakemake.log")),
        threads: 16
        shell:
            "{PYTHON} {SCRIPTS}/generate_h5_pretraining.py {OPTIONS} --jobs {threads} 2> {log:q}"


rule pretrain:
    input:
        of_any_split(PATHS.store("pretrain_train")),
        of_any_split(PATHS.store("pretrain_val")),
        lambda wildcards: weights_of(wildcards.split, STAGES[wildcards.stage].warm_start),
    output:
        of_any_split(PATHS.stage_weights("{stage}")),
    params:
        made_from=lambda wildcards: hash_of_stage(wildcards.stage),
        seed=DATASET.seed,
        fold=lambda wildcards: fold_option(wildcards.split),
    log:
        of_any_split(PATHS.stage("{stage}") / "snakemake.log"),
    threads: 8
    resources:
        gpu=1,
    shell:
        "TF_NUM_INTRAOP_THREADS={threads} {PYTHON} {SCRIPTS}/constrained_contrastive_learning.py {OPTIONS} "
        "--method {wildcards.stage} {params.fold} 2> {log:q}"


rule cell:
    input:
        of_any_split(PATHS.store("annotated")),
        lambda wildcards: weights_of(wildcards.split, wildcards.init),
    output:
        of_any_split(CELL / METRICS),
    params:
        made_from=lambda wildcards: hash_of_cell(wildcards.contrasts, wildcards.init),
        seed=DATASET.seed,
        fold=lambda wildcards: fold_option(wildcards.split),
        n=lambda wildcards: int(wildcards.n),
    log:
        of_any_split(CELL / "snakemake.log"),
    threads: 1
    resources:
        gpu=1,
    shell:
        "TF_NUM_INTRAOP_THREADS={threads} {PYTHON} {SCRIPTS}/finetune_segmentation.py {OPTIONS} {params.fold} "
        "--contrasts {wildcards.contrasts} --init {wildcards.init} --subjects-n {params.n} "
        "--only-repeats {wildcards.repeat} 2> {log:q}"


rule synthesis:
    input:
        str(PATHS.volumes),
        lambda wildcards: weights_of(wildcards.split, wildcards.init),
    output:
        of_any_split(SYNTHESIS / METRICS),
    params:
        made_from=lambda wildcards: hash_of_synthesis(wildcards.init),
        seed=DATASET.seed,
        fold=lambda wildcards: fold_option(wildcards.split),
        n=lambda wildcards: int(wildcards.n),
    log:
        of_any_split(SYNTHESIS / "snakemake.log"),
    threads: 1
    resources:
        gpu=1,
    shell:
        "TF_NUM_INTRAOP_THREADS={threads} {PYTHON} {SCRIPTS}/finetune_synthesis.py {OPTIONS} {params.fold} "
        "--init {wildcards.init} --subjects-n {params.n} --only-repeats {wildcards.repeat} 2> {log:q}"


rule tables:
    input:
        [metrics(*cell) for cell in cells()],
    output:
        str(PAGE),
    params:
        made_from=fingerprint(DATASET.paper, sorted(DATASET.data.labels), list(cells())),
    shell:
        "{PYTHON} {SCRIPTS}/reproduce_tables.py {OPTIONS}"
