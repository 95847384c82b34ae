"""RAFT (Recurrent All-Pairs Field Transforms, ECCV 2020) on synthetic clips with exact flow.

    uvos train --config raft --workdir runs/raft

The recipe is the first stage (FlyingChairs) of the published training script, with as many pairs of the same size
rendered by ``uvos_jax.data.synthetic.clip``. The later stages (FlyingThings, Sintel, KITTI) are not included. "Paper"
marks values of Sec. 4 and its appendix, "code" those of the script. Hardware, hours and score of the full recipe: not
measured.

``raft:tiny`` is the small network on small frames. About ten minutes on two x86 cores; EPE 1.18 pixels on ten held-back
clips of 240x424 (DIS: 0.45; ``benchmarks/raft_tiny.py``):

    uvos convert-data synthetic --data-dir exact    # without --flow, which would replace the exact flow
    uvos train --config raft:tiny --workdir runs/raft_tiny --data-dir exact
"""

from . import common

_SCENES_APART = 1_000_000  # first seed of the held-back clips


def get_config(arg: str = ""):
    """Returns the recipe or its preset ``tiny``."""
    return common.preset(arg, {"": full, "tiny": tiny})()


def full():
    """Returns the stage "chairs" of the published script (paper: Sec. 4 and the table of its appendix)."""
    config = common.empty()
    config.model = {"name": "raft", "net": "large", "iterations": 12}  # in training; inference uses 20
    config.batch_size = 10  # code; paper 12
    size = [384, 512]
    config.data = {
        "mixture": [{"name": "synthetic", "count": 22_232, "length": 2, "size": size}],
        "recipe": {"name": "next"},
        # Code: scales by 2^-0.1 to 2^1 and stretches slightly, but never below the crop; ours: from 1, no stretching.
        # Horizontal flips with probability .5; the code's vertical ones (.1) are omitted.
        "geometry": {"kind": "random_crop", "scale": [1.0, 2.0], "flip": 0.5},
        # Code: color jitter of .4; its hue rotation (.16) and the erased patches of the second frame are omitted. One
        # draw for both frames; in the code for 80% of the pairs.
        "color": {"brightness": [0.6, 1.4], "contrast": [0.6, 1.4], "color": [0.6, 1.4]},
        "size": [368, 496], "flow": True,
    }
    config.optimizer = {"name": "adamw", "weight_decay": 1e-4, "eps": 1e-8, "clip_norm": 1.0}  # code
    config.schedule = {"name": "one_cycle", "lr": 4e-4, "anneal": "linear", "pct_start": 0.05, "steps": 100_100}  # code
    config.phases = [{"name": "synthetic clips", "steps": 100_000}]
    config.validate = {"every": 5_000, "synthetic": {"count": 200, "length": 2, "size": size, "seed": _SCENES_APART}}
    return config


def tiny():
    """Returns RAFT small on synthetic clips: many cheap steps on small crops, then a few on larger ones.

    The order follows the published stages. A crop of 64 pixels has feature maps of 8; a network trained on these alone
    fails where correlations come from further away.
    """
    config = full()
    config.model = {"name": "raft", "net": "small", "iterations": 4}
    config.batch_size = 8
    config.data = config.data | {
        "mixture": [{"name": "synthetic", "split": "train"}],
        "geometry": {"kind": "random_crop", "scale": [1.0, 2.0], "flip": 0.5},
        "size": [64, 64],
    }
    config.schedule = {"name": "one_cycle", "lr": 8e-4, "anneal": "linear", "pct_start": 0.05}
    config.phases = [{"name": "small crops", "steps": 2_000},
                     {"name": "larger crops", "steps": 250, "data": {"size": [128, 192]}, "schedule": {"lr": 4e-4}}]
    config.validate = {"every": 250, "name": "synthetic", "split": "val", "phases": ["larger crops"]}
    config.log_every = 50
    config.checkpoint_every = 500
    return config
