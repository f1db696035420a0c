"""Seed LR and explore fraction as people read them, the same wherever they are shown."""


def percent(fraction: float) -> str:
    """``0.125`` as ``12.5%``: fractions more than 0.0001 apart never look the same."""
    return f"{100 * fraction:.4g}%"


def learning_rate(value: float) -> str:
    """As it was typed."""
    return f"{value:g}"


def setting(seed_lr: float, explore_fraction: float | None) -> str:
    """``seed LR 0.05, explore 50%``; without a fraction, of a baseline, the seed LR alone."""
    explore = "" if explore_fraction is None else f", explore {percent(explore_fraction)}"
    return f"seed LR {learning_rate(seed_lr)}{explore}"
