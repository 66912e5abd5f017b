"""Hashes of every committed config, one per line, to check that new keys do not change them.

    python -m tests.config_hashes > tests/golden/config_hashes.json

Rewrite the file only if a hash is meant to change; earlier results then belong to another config.
"""

import json
from pathlib import Path

from utils.checks import InputError
from utils.config.load import load_config

ROOT = Path(__file__).resolve().parent.parent


def config_files():
    """Return the paths of all committed configs, relative to the root."""
    found = [*ROOT.glob("configs/*.yaml"), *ROOT.glob("configs/papers/*.yaml"), *ROOT.glob("results/*/config.yaml")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def hashes_of(config):
    """Return hashes by name of the result: slices, stages of pretraining, cells of both grids."""
    hashes = {"slices": config.hash_of_slices()} if config.slices else {}
    if config.pretraining:
        hashes |= {f"stage {name}": config.hash_of_stage(name) for name in config.pretraining.stages}
    if config.finetuning:
        grid = config.finetuning
        hashes |= {
            f"cell {name} {init}": config.hash_of_cell(name, init) for name in grid.contrasts for init in grid.inits
        }
    if config.synthesis:
        hashes |= {f"synthesis {init}": config.hash_of_synthesis(init) for init in config.synthesis.inits}
    return hashes


def all_hashes():
    """Return the hashes of all configs that can be loaded, by file."""
    found = {}
    for path in config_files():
        try:
            found[path] = hashes_of(load_config(ROOT / path))
        except InputError:
            continue
    return found


if __name__ == "__main__":
    print(json.dumps(all_hashes(), indent=1))
