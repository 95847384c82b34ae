"""Helpers shared by the recipes. Values from a paper are in the file of that paper."""

from ml_collections import ConfigDict

from uvos_jax.errors import UserError, nearest_hint

# Sequences of DAVIS-2016 train that the small networks hold back for validation.
HELD_BACK = ["bear", "dance-jump", "motorbike", "rhino", "surf"]


def empty() -> ConfigDict:
    """Returns an empty configuration; missing keys get the defaults of docs/training.md.

    Nested dicts and lists stay plain, so that assignments replace them completely.
    """
    return ConfigDict(convert_dict=False)


def preset(name: str, known: dict):
    """Returns the function of a preset.

    Args:
        name: Name of the preset; ``""`` is the full recipe.
        known: Functions by preset name.

    Raises:
        UserError: The preset is unknown.
    """
    if name not in known:
        others = [other for other in known if other]
        raise UserError(f"Unknown preset '{name}'; valid presets: {', '.join(others)} (or none)."
                        f"{nearest_hint(name, others)}")
    return known[name]
