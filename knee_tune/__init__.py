"""knee-tune: find the seed LR and the explore fraction of a Knee learning-rate schedule."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from knee_tune.scripts.run import join

__version__ = "0.1.0"

__all__ = ["__version__", "join"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for."""
    if name == "join":
        from knee_tune.scripts.run import join

        return join
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
