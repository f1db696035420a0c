"""knee-tune: find the seed LR and the explore fraction of a Knee learning-rate schedule."""

__version__ = "0.1.0"
