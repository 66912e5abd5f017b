"""The command lines of the scripts: their shared options, and the config that these name."""

import argparse
import importlib.util
import logging
import os
import shlex
from pathlib import Path

from utils.checks import InputError
from utils.config.load import load_config
from utils.environment import started_as

INSTALL_MLFLOW = "pip install mlflow-skinny==3.17.2 alembic==1.20.1"


def parser_of(description):
    """Build the parser of a script; its usage line shows a tool as it is typed: `python -m tools.NAME`.

    Args:
        description: The script's docstring; `--help` prints it.
    """
    words = started_as()
    name = " ".join(words) if "-m" in words else None  # None: the file name
    return argparse.ArgumentParser(
        prog=name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def positive(word):
    """Parse a whole number of at least 1 from the command line; argparse adds the option to the error."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word}: expected a whole number of at least 1")
    return int(word)


def whole(word):
    """Parse a whole number of at least 0 in the same way."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word}: expected a whole number of at least 0")
    return int(word)


def add_training_options(parser):
    """Add the options that the training scripts share."""
    text = "also write events for TensorBoard, into tensorboard/ in each run folder"
    parser.add_argument("--tensorboard", action="store_true", help=text)
    text = "also log config, losses, scores and records to MLflow, at MLFLOW_TRACKING_URI or in ./mlflow.db"
    parser.add_argument("--mlflow", action="store_true", help=text)
    text = "bit-identical results on a GPU too, at the cost of speed (docs/reliability.md)"
    parser.add_argument("--deterministic", action="store_true", help=text)


def chosen_sinks(options):
    """Return the trackers of a training run as keyword arguments of `training.loop.RunOptions`.

    Raises:
        InputError: MLflow is requested but not installed.
    """
    if options.mlflow and importlib.util.find_spec("mlflow") is None:
        raise InputError(f"--mlflow: MLflow is not installed; type: {INSTALL_MLFLOW}")
    return {"with_tensorboard": options.tensorboard, "with_mlflow": options.mlflow}


def add_grid_options(parser):
    """Add the options that the scripts of step 4 share: which cells of the grid to run, and how."""
    add_training_options(parser)
    parser.add_argument("--init", nargs="+", metavar="NAME", help="initialisations (default: all in the config)")
    parser.add_argument("--subjects-n", nargs="+", type=positive, metavar="N", help="numbers of annotated subjects")
    parser.add_argument("--repeats", type=positive, metavar="K", help="number of draws of annotated subjects")
    parser.add_argument("--only-repeats", nargs="+", type=int, metavar="R", help="only these draws, counted from 0")
    parser.add_argument(
        "--folds", nargs="+", type=int, metavar="K", help="folds of the cross-validation (default: all)"
    )
    parser.add_argument(
        "--devices", type=positive, default=1, metavar="N", help="GPUs that share each batch (default: 1)"
    )
    parser.add_argument("--keep-going", action="store_true", help="continue if a cell fails, then end with exit code 1")
    parser.add_argument("--overwrite", action="store_true", help="redo finished cells")


def chosen_axes(grid, stages, options):
    """Return the inits, numbers of subjects and repeats to run, from the command line or else from the config.

    Args:
        grid: The section of the config, with `inits`, `subjects_n` and `repeats`.
        stages: Names of the pretraining stages.
        options: Parsed command line with the options of `add_grid_options`.

    Raises:
        InputError: An unknown init, or a repeat that does not exist.
    """
    known = {"random", *stages}
    for name in options.init or ():
        if name not in known:
            raise InputError(f"--init {name}: neither random nor a stage of pretraining ({', '.join(sorted(known))})")
    repeats = range(options.repeats or grid.repeats)
    for repeat in options.only_repeats or ():
        if repeat not in repeats:
            raise InputError(f"--only-repeats {repeat}: there are {len(repeats)}, counted from 0")
    return options.init or grid.inits, options.subjects_n or grid.subjects_n, options.only_repeats or repeats


def from_command_line(description, arguments=None, add_options=None, needs=(), beside=None):
    """Parse a script's command line and load its config.

    Args:
        description: The script's docstring; `--help` prints it.
        arguments: Words of the command line; None means `sys.argv[1:]`.
        add_options: Function that adds the script's own options to the `argparse` parser.
        needs: Sections that the script requires.
        beside: Name of an option of the script that takes a file; if given, config.yaml and results lie beside that
            file unless --config and --work-dir say otherwise.

    Returns:
        `(config, options)`: the `Config` and the `argparse.Namespace`; its `again` passes the config to the next step.
    """
    parser = parser_of(description)
    parser.add_argument("--config", required=beside is None, type=Path, metavar="FILE", help="YAML of the dataset")
    parser.add_argument("--work-dir", type=Path, metavar="DIR", help="overrides work_dir of the config")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="overrides values, such as data.root=/scans; may be repeated",
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="lowest level of messages to show and to write to run.log (default: info)",
    )
    if add_options:
        add_options(parser)
    options = parser.parse_args(arguments)
    if beside is not None and (file := getattr(options, beside)):
        options.config = options.config or file.with_name("config.yaml")
        options.work_dir = options.work_dir or file.parent
    elif options.config is None:
        parser.error(f"give --config FILE or --{beside} FILE")
    logging.getLogger("mrccl").setLevel(options.log_level.upper())
    config = load_config(options.config, options.overrides, options.work_dir)
    options.again = _again(options)
    if missing := [name for name in needs if getattr(config, name) is None]:
        raise InputError([f"{options.config}: this step needs the section '{name}:'" for name in missing])
    check_writable(config.work_dir, "work_dir", "give another --work-dir")
    return config, options


def _again(options):
    """Return the options that reproduce the config, ready to be typed."""
    moved = ["--work-dir", str(options.work_dir)] if options.work_dir else []
    changed = ["--set", *options.overrides] if options.overrides else []
    return shlex.join(["--config", str(options.config), *moved, *changed])


def check_writable(folder, where, advice):
    """Raise InputError if a folder is not writable and cannot be created; nothing is created or written.

    Args:
        folder: Its path.
        where: The option or key that names it, for the message.
        advice: What to do, for the message.
    """
    try:
        existing = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
        if not existing.exists():
            raise InputError(f"{where}: '{existing}' is a link to nowhere; fix it, or {advice}")
        if not existing.is_dir():
            raise InputError(f"{where}: '{existing}' is a file, not a folder; {advice}")
        if not os.access(existing, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise InputError(f"{where}: no permission to write in '{existing}'; change it, or {advice}")
        longest = os.pathconf(existing, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        if too_long := [part for part in folder.parts if len(os.fsencode(part)) > longest]:
            raise InputError(f"{where}: '{too_long[0][:40]}...' is longer than {longest} bytes; {advice}")
    except OSError as error:
        raise InputError(f"{where}: '{folder}' cannot be used ({error.strerror}); {advice}") from None
