"""The packaged network: the motion stream of DPA from random weights, for a CPU.

    uvos convert-data davis2016 --source DAVIS --data-dir data --flow dis
    uvos convert-data duts --source DUTS --data-dir data --flow dis
    uvos convert-data synthetic --data-dir data --flow dis --clips 300
    uvos train --config default --workdir runs/default --data-dir data

31 minutes on one x86 core. J 72.0, F 66.4 percent: means over the thirty sequences of DAVIS-2016 train in three runs
that hold back ten each (``default:fold0`` to ``fold2``, ``benchmarks/default_folds.py``; docs/model_card.md). All
values are ours.

Presets:

- ``default:fold0``, ``fold1``, ``fold2``: train on twenty sequences of DAVIS-2016 train and validate on the other ten.
- ``default:synthetic``: synthetic clips only, so that no dataset license applies to the weights. 27 minutes on one x86
  core; J 72.5, F 66.4 percent on the same thirty sequences.
- ``default:small_*``: 200 steps at 64x128 for ablations on fold 0, eight minutes on one core. Data:
  ``small_synthetic`` (J 71.2), ``small_duts`` (and stills, 68.8), ``small_motion`` (and DAVIS, 69.0). Streams:
  ``small_motion``, ``small_appearance`` (40.4), ``small_both`` (66.1).

Fine-tuning on your own clips (``JPEGImages/<sequence>/*`` and masks ``Annotations/<sequence>/*.png`` of some frames)
takes minutes:

    uvos train --config default --workdir runs/mine --config.data=folder:clips
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
# A still is a clip of two frames, whose flow leads to a copy with moved foreground.
_STILLS = {"name": "duts", "split": "train", "recipe": {"name": "still", "length": 2}}
_VIDEOS = {"name": "davis2016", "split": "train"}
# Data and streams of the ablations that differ from the recipe's.
SMALL = {"synthetic": {"mixture": [_CLIPS]}, "duts": {"mixture": [_CLIPS, _STILLS]}, "motion": {},
         "appearance": {"streams": "appearance"}, "both": {"streams": "both"}}


def get_config(arg: str = ""):
    """Returns the recipe or a preset: ``synthetic``, ``fold0`` to ``fold2``, ``small_*``."""
    folds = {f"fold{k}": lambda k=k: fold(k) for k in range(3)}
    small = {f"small_{name}": lambda name=name: small_budget(name) for name in SMALL}
    return common.preset(arg, {"": full, "synthetic": synthetic, **folds, **small})()


def full():
    """Returns the recipe: all of DAVIS-2016 train, stills of DUTS and synthetic clips."""
    return _recipe([_VIDEOS | {"share": 3}, _STILLS, _CLIPS])


def synthetic():
    """Returns the recipe with synthetic clips only."""
    return _recipe([_CLIPS])


def fold(k):
    """Returns ``full`` without the sequences of fold ``k``, which it validates on."""
    config = _recipe([_VIDEOS | {"share": 3, "exclude": FOLDS[k]}, _STILLS, _CLIPS])
    config.validate = {"every": 1_000, "name": "davis2016", "split": "train", "only": FOLDS[k], "phases": ["fine"]}
    return config


def small_budget(name):
    """Returns ``fold0`` with 200 coarse steps, with less data or other streams."""
    config = fold(0)
    coarse = config.phases[0] | {"steps": 200}
    coarse["data"] = coarse["data"] | {"mixture": SMALL[name].get("mixture", coarse["data"]["mixture"])}
    config.phases = [coarse]
    config.model = config.model | {"streams": SMALL[name].get("streams", "motion"), "short_side": 64}
    config.schedule = {"name": "cosine", "lr": 3e-3, "end": 1e-5, "warmup": 30}
    config.validate = config.validate | {"phases": ["coarse"]}
    return config


def fine_tune(dataset):
    """Returns the fine-tuning of the packaged weights on a dataset of your own clips."""
    config = _recipe([{"name": dataset, "split": "train"}])
    config.init = {"weights": "default"}
    config.phases = [config.phases[1] | {
        "name": "fine-tune", "steps": 60, "schedule": {"name": "cosine", "lr": 3e-4, "end": 1e-5, "warmup": 10}}]
    config.ema_decay = 0.95
    config.checkpoint_every = 30
    return config


def _recipe(mixture):
    config = dpa.full()
    # The motion stream alone, with references: with few training videos, flow generalizes and appearance does not.
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
