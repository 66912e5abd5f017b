"""Hashes of every committed config, one line each, to see that a new key leaves them as they are.

    python -m tests.config_hashes > tests/golden/config_hashes.json

Write the file anew only when a hash should change: results made before are then of another config.
"""

import json
from pathlib import Path

from utils.checks import InputError
from utils.config.load import load_config

ROOT = Path(__file__).resolve().parent.parent


def config_files():
    """Paths of all committed configs, from the root."""
    found = [*ROOT.glob("configs/*.yaml"), *ROOT.glob("configs/papers/*.yaml"), *ROOT.glob("results/*/config.yaml")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def hashes_of(config):
    """Name of a result to its hash: slices, stages of pretraining, cells of both grids."""
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
    """Hashes of the configs that can be loaded, by file."""
    found = {}
    for path in config_files():
        try:
            found[path] = hashes_of(load_config(ROOT / path))
        except InputError:
            continue
    return found


if __name__ == "__main__":
    print(json.dumps(all_hashes(), indent=1))
