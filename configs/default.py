"""The network in the package: a DPA from random weights that two CPU cores train in well under an hour.

    uvos convert-data davis2016 --source DAVIS --data-dir data --flow dis
    uvos convert-data duts --source DUTS --data-dir data --flow dis
    uvos convert-data synthetic --data-dir data --flow dis --clips 300
    uvos train --config configs/default.py --workdir runs/default --data-dir data

``fold0``, ``fold1`` and ``fold2`` train on twenty of the thirty sequences of DAVIS-2016 train and are judged on the
other ten. ``synthetic`` sees generated clips alone, so that no license of data binds its weights. With a small equal
budget ``small_synthetic``, ``small_duts`` (and stills) and ``small_motion`` (and DAVIS) tell what the data are worth,
``small_motion``, ``small_appearance`` and ``small_both`` what the streams are.

Clips of your own (``JPEGImages/<sequence>/*`` with masks ``Annotations/<sequence>/*.png`` of some frames) teach the
network in the package what you film, in minutes:

    uvos train --config configs/default.py --workdir runs/mine --config.data=folder:clips
"""

from . import common, dpa

SEQUENCES = [
    "bear", "bmx-bumps", "boat", "breakdance-flare", "bus", "car-turn", "dance-jump", "dog-agility", "drift-turn",
    "elephant", "flamingo", "hike", "hockey", "horsejump-low", "kite-walk", "lucia", "mallard-fly", "mallard-water",
    "motocross-bumps", "motorbike", "paragliding", "rhino", "rollerblade", "scooter-gray", "soccerball", "stroller",
    "surf", "swing", "tennis", "train",
]  # DAVIS-2016 train
FOLDS = [SEQUENCES[k::3] for k in range(3)]
_CLIPS = {"name": "synthetic", "split": "train"}
# Pictures count as clips of two frames: flow leads to copies of them whose foreground moves.
_STILLS = {"name": "duts", "split": "train", "recipe": {"name": "still", "length": 2}}
_VIDEOS = {"name": "davis2016", "split": "train"}
# Data and streams where they are not the recipe's.
SMALL = {"synthetic": {"mixture": [_CLIPS]}, "duts": {"mixture": [_CLIPS, _STILLS]}, "motion": {},
         "appearance": {"streams": "appearance"}, "both": {"streams": "both"}}


def get_config(arg: str = ""):
    """The recipe, or one of its presets."""
    folds = {f"fold{k}": lambda k=k: fold(k) for k in range(3)}
    small = {f"small_{name}": lambda name=name: small_budget(name) for name in SMALL}
    return common.preset(arg, {"": full, "synthetic": synthetic, **folds, **small})()


def full():
    """DAVIS-2016 train, stills of DUTS and generated clips; nothing is held back."""
    return _recipe([_VIDEOS | {"share": 3}, _STILLS, _CLIPS])


def synthetic():
    """Generated clips alone."""
    return _recipe([_CLIPS])


def fold(k):
    """What ``full`` is worth on sequences that it has not seen."""
    config = _recipe([_VIDEOS | {"share": 3, "exclude": FOLDS[k]}, _STILLS, _CLIPS])
    config.validate = {"every": 1_000, "name": "davis2016", "split": "train", "only": FOLDS[k], "phases": ["fine"]}
    return config


def small_budget(name):
    """``fold0`` with 200 coarse steps, on less data or with other streams."""
    config = fold(0)
    coarse = config.phases[0] | {"steps": 200}
    coarse["data"] = coarse["data"] | {"mixture": SMALL[name].get("mixture", coarse["data"]["mixture"])}
    config.phases = [coarse]
    config.model = config.model | {"streams": SMALL[name].get("streams", "motion"), "short_side": 64}
    config.schedule = {"name": "cosine", "lr": 3e-3, "end": 1e-5, "warmup": 30}
    config.validate = config.validate | {"phases": ["coarse"]}
    return config


def fine_tune(dataset):
    """The network in the package goes on with clips of one's own."""
    config = _recipe([{"name": dataset, "split": "train"}])
    config.init = {"weights": "default"}
    config.phases = [config.phases[1] | {
        "name": "own", "steps": 60, "schedule": {"name": "cosine", "lr": 3e-4, "end": 1e-5, "warmup": 10}}]
    config.ema_decay = 0.95
    config.checkpoint_every = 30
    return config


def _recipe(mixture):
    config = dpa.full()
    # The motion stream alone, with references: flow generalizes from few videos, what things look like does not.
    config.model = {"name": "dpa", "streams": "motion", "width": 16, "embedding": 32, "decoder": 4, "ima": False,
                    "camera": True, "encoder_norm": True, "refine": True, "short_side": 128}
    config.batch_size = 8
    coarse, fine = (config.data | {
        "mixture": mixture, "recipe": {"name": "references", "count": 1}, "flow": True, "paste": 0.3, "size": size,
        "geometry": {"kind": "random_crop", "short_side": size[0], "scale": [1.0, 1.3], "flip": 0.5,
                     "independent": True},
    } for size in ([64, 128], [128, 224]))
    config.data = {}
    config.optimizer = {"name": "adamw", "weight_decay": 1e-2, "clip_norm": 5.0}
    config.schedule = {"name": "cosine", "lr": 3e-3, "end": 5e-4, "warmup": 50}
    config.ema_decay = 0.99
    config.phases = [
        {"name": "coarse", "steps": 800, "data": coarse},
        {"name": "fine", "steps": 150, "data": fine,
         "schedule": {"name": "cosine", "lr": 1e-3, "end": 1e-5, "warmup": 20}},
    ]
    config.validate = None
    config.log_every = 20
    config.checkpoint_every = 250
    return config
