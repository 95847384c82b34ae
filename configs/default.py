"""A DPA from random weights that two CPU cores can train and run, to become the network in the package.

The package holds the small AD-Net (``configs/adnet.py:small``) until this recipe is settled: of its three folds the
first two are measured, J 64.0 and 56.7 without ``--set refine=true``, and the shipped weights are not trained.

    uvos convert-data davis2016 --source DAVIS --data-dir data --flow dis
    uvos convert-data duts --source DUTS --data-dir data
    uvos convert-data synthetic --data-dir data --flow dis --clips 300
    uvos train --config configs/default.py --workdir runs/default --data-dir data

``fold0``, ``fold1`` and ``fold2`` train on twenty of the thirty sequences of DAVIS-2016 train and are judged on the
other ten. ``synthetic`` sees generated clips alone, so that no licence of data binds its weights. ``small_synthetic``,
``small_duts`` (clips and stills) and ``small_davis`` (all) tell what the data are worth, ``small_motion`` and
``small_appearance`` what the streams are.

Clips of your own (``JPEGImages/<sequence>/*`` with masks ``Annotations/<sequence>/*.png`` of some frames) teach the
trained network what you film, in minutes:

    uvos train --config configs/default.py --workdir runs/mine --config.data=folder:clips \\
        --config.init.weights=runs/default/last
"""

from configs import common, dpa

SEQUENCES = [
    "bear", "bmx-bumps", "boat", "breakdance-flare", "bus", "car-turn", "dance-jump", "dog-agility", "drift-turn",
    "elephant", "flamingo", "hike", "hockey", "horsejump-low", "kite-walk", "lucia", "mallard-fly", "mallard-water",
    "motocross-bumps", "motorbike", "paragliding", "rhino", "rollerblade", "scooter-gray", "soccerball", "stroller",
    "surf", "swing", "tennis", "train",
]  # DAVIS-2016 train
FOLDS = [SEQUENCES[k::3] for k in range(3)]
_CLIPS, _STILLS = [{"name": "synthetic", "split": "train"}], [{"name": "duts", "split": "train"}]
# Mixtures of both phases where they are not the recipe's, and the streams.
SMALL = {"synthetic": ((_CLIPS, _CLIPS), None), "duts": ((_STILLS, _CLIPS), None), "davis": ((None, None), None),
         "motion": ((None, None), "motion"), "appearance": ((None, None), "appearance")}


def get_config(arg: str = ""):
    """The recipe, or one of its presets."""
    folds = {f"fold{k}": lambda k=k: fold(k) for k in range(3)}
    small = {f"small_{name}": lambda name=name: small_budget(name) for name in SMALL}
    return common.preset(arg, {"": full, "synthetic": synthetic, **folds, **small})()


def full():
    """DAVIS-2016 train, stills of DUTS and generated clips; nothing is held back."""
    return _recipe([{"name": "duts", "split": "train", "share": 2}, {"name": "davis2016", "split": "train"}],
                   [{"name": "davis2016", "split": "train", "share": 3}, {"name": "synthetic", "split": "train"}])


def synthetic():
    """Generated clips alone."""
    return _recipe(_CLIPS, _CLIPS)


def fold(k):
    """What ``full`` is worth on sequences that it has not seen."""
    config = full()
    for phase in config.phases:
        for entry in phase["data"]["mixture"]:
            if entry["name"] == "davis2016":
                entry["exclude"] = FOLDS[k]
    config.validate = {"every": 1_000, "name": "davis2016", "split": "train", "only": FOLDS[k], "phases": ["videos"]}
    return config


def small_budget(name):
    """``fold0`` with a third of the steps, on less data or without one of the streams."""
    config = fold(0)
    mixtures, streams = SMALL[name]
    for phase, steps, mixture in zip(config.phases, (50, 300), mixtures, strict=True):
        phase["steps"] = steps
        if mixture:
            phase["data"]["mixture"] = mixture
    if streams:
        config.model = config.model | {"streams": streams}
    if streams == "appearance":  # goes on where the stills end
        del config.phases[1]["carry"]
    return config


def fine_tune(dataset):
    """A trained network (``init.weights``) goes on with clips of one's own."""
    config = _recipe([], [{"name": dataset, "split": "train"}])
    config.phases = [{"name": "own", "steps": 100, "data": config.phases[1]["data"]}]
    config.schedule = {"name": "cosine", "lr": 3e-4, "end": 1e-5, "warmup": 10}
    config.ema_decay = 0.95
    config.checkpoint_every = 50
    return config


def _recipe(stills, videos):
    config = dpa.full()
    # Row III of DPA's Table 1: references, and no attention between the streams, which so few videos did not teach.
    # Flow less the camera's motion is what generalises.
    config.model = {"name": "dpa", "width": 16, "embedding": 32, "decoder": 4, "ima": False, "camera": True,
                    "encoder_norm": True, "short_side": 96}
    config.batch_size = 8
    config.data = config.data | {
        "geometry": {"kind": "random_crop", "short_side": 96, "scale": [1.0, 1.3], "flip": 0.5, "independent": True},
        "size": [96, 160],
        "paste": 0.3,
    }
    config.optimizer = {"name": "adamw", "weight_decay": 1e-2, "clip_norm": 5.0}
    config.schedule = {"name": "cosine", "lr": 1e-3, "end": 1e-5, "warmup": 50}
    config.ema_decay = 0.99
    config.phases = [
        {"name": "stills", "steps": 150, "model": {"streams": "appearance"}, "data": {
            "mixture": stills, "recipe": {"name": "still", "length": 1}}},
        {"name": "videos", "steps": 850, "carry": dpa.START_MOTION, "data": {
            "mixture": videos, "recipe": {"name": "references", "count": 1}, "flow": True}},
    ]
    config.validate = None
    config.log_every = 20
    config.checkpoint_every = 250
    return config
