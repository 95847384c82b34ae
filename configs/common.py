"""What the configurations share. Every value that a paper gives stands in that paper's file."""

from ml_collections import ConfigDict

from uvos_jax.errors import UserError, nearest_hint

# Sequences of DAVIS-2016 train that the small networks hold back, because a recipe is judged on what it has not seen.
HELD_BACK = ["bear", "dance-jump", "motorbike", "rhino", "surf"]


def empty() -> ConfigDict:
    """A configuration to fill; what it leaves out has the defaults of docs/training.md.

    Dicts and lists inside stay plain: they are replaced as wholes.
    """
    return ConfigDict(convert_dict=False)


def preset(name: str, known: dict):
    """The function of a preset; raises ``UserError`` for an unknown one. The preset ``""`` is the file without one."""
    if name not in known:
        others = [other for other in known if other]
        raise UserError(f"There is no preset '{name}'; known are {', '.join(others)} (or none)."
                        f"{nearest_hint(name, others)}")
    return known[name]
