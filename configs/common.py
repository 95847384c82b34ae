"""What the configurations share. Every value that a paper gives stands in that paper's file."""

from ml_collections import ConfigDict

from uvos_jax.errors import UserError, nearest_hint


def base(model: str) -> ConfigDict:
    """What a recipe has besides its model, data, optimiser and phases; see docs/training.md for every key.

    Args:
      model: name of the system.
    """
    config = ConfigDict(convert_dict=False)  # plain dicts and lists inside: they are replaced as wholes
    config.model = {"name": model}
    config.init = {"backbone": "", "weights": ""}
    config.seed = 0
    config.precision = "float32"
    config.launcher = "pmap"
    config.batch_norm = "sync"
    config.accumulate = 1
    config.ema_decay = None
    config.log_every = 50
    config.checkpoint_every = 1000
    config.keep = 2
    config.validate = None
    config.data_dir = ""
    return config


def preset(name: str, known: dict):
    """The function of a preset; raises ``UserError`` for an unknown one. The preset ``""`` is the file without one."""
    if name not in known:
        others = [other for other in known if other]
        raise UserError(f"There is no preset '{name}'; known are {', '.join(others)} (or none)."
                        f"{nearest_hint(name, others)}")
    return known[name]
