"""What the configurations share. Every value that a paper gives stands in that paper's file."""

from ml_collections import ConfigDict


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
    """The function of a preset; raises ``ValueError`` for an unknown one, which the command line shows."""
    if name not in known:
        raise ValueError(f"there is no preset '{name}'; known are {', '.join(known)}")
    return known[name]
