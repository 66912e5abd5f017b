"""What a result was made from: written beside the result, and compared before it is reused."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.checks import InputError

WHAT = {"scans": "from other scans", "config_hash": "with another config", "split_hash": "with another split"}


@dataclass(frozen=True)
class Provenance:
    """What a result was made from.

    Attributes:
        config_hash: Hash of the settings that affect the result.
        seed: Seed of the config.
        split_hash: Hash of the split; None where no split belongs to the result.
        scans: Hash of the scans without label maps; None where these have no hashes.
        others: Anything else it was made from, such as lists of subjects.
    """

    config_hash: str
    seed: int
    split_hash: str | None = None
    scans: str | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return what is written beside the result."""
        known = {"config_hash": self.config_hash, "seed": self.seed, **self.others}
        known |= {"split_hash": self.split_hash, "scans": self.scans}
        return {name: value for name, value in known.items() if value is not None}

    def difference(self, found: Mapping[str, Any]) -> str | None:
        """Describe how `found`, written beside a result, differs from this; None if it does not."""
        differing = [name for name, value in self.as_dict().items() if found.get(name) != value]
        return WHAT.get(differing[0], f"with another {differing[0].replace('_', ' ')}") if differing else None

    def refuse_other(self, found: Mapping[str, Any], folder: Path) -> None:
        """Raise InputError unless the result in a folder, with `found` written beside it, has the same provenance."""
        if how := self.difference(found):
            raise InputError(f"{folder}: made {how}; give --overwrite, or another --work-dir")
