"""Recipe of LumaNet: two steps on pairs of frames of generated clips."""

from ml_collections import ConfigDict


def get_config(arg: str = ""):
    """Returns the only preset."""
    del arg
    config = ConfigDict(convert_dict=False)
    config.model = {"name": "lumanet"}
    config.batch_size = 2
    config.data = {"mixture": [{"name": "synthetic", "count": 4, "length": 4, "size": [48, 64], "seed": 0}],
                   "recipe": {"name": "pair", "first": True}, "geometry": {"kind": "resize"}, "size": [32, 48],
                   "objects": "foreground"}
    config.optimizer = {"name": "sgd", "momentum": 0.9}
    config.schedule = {"name": "constant", "lr": 0.05}
    config.phases = [{"name": "all", "steps": 2}]
    config.log_every = 1
    return config
