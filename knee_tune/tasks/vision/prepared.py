"""What ``knee-tune data prepare`` answers for images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PreparedImages:
    """What a preparation did: for people and, as it is, for JSON."""

    folder: Path
    name: str
    images: Mapping[str, int]
    """By split, or by folder."""
    fingerprint: str
    seconds: float
    reused: bool
    """The set was there already."""
    warnings: tuple[str, ...] = ()

    def contents(self) -> str:
        """What is in it, in a few words."""
        return ", ".join(f"{count:,} {part}" for part, count in self.images.items()) + " images"
