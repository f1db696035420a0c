"""One finding of the doctor."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One finding: ``detail`` is what is there, ``advice`` what to do where it is not ``ok``."""

    name: str
    ok: bool
    detail: str
    advice: str = ""
