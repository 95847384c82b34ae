"""RAFT (Recurrent All-Pairs Field Transforms, ECCV 2020) on generated clips, whose flow is exact.

    uvos train --config configs/raft.py --workdir runs/raft

The recipe is that of the published training script for its first stage (FlyingChairs), in whose place scenes of
``uvos_jax.data.synthetic.clip`` stand: as many pairs of frames, of the same size. What follows there, on FlyingThings,
Sintel and KITTI, is not here. The full recipe was not run: its time and its accuracy are not measured.
``configs/raft.py:tiny`` is the small network on small frames, for a CPU: about ten minutes on two cores, see
benchmarks/raft_tiny.py.

    uvos convert-data synthetic --data-dir exact    # without --flow: what is learned is the exact flow
    uvos train --config configs/raft.py:tiny --workdir runs/raft_tiny --data-dir exact
"""

from . import common

_SCENES_APART = 1_000_000  # seeds of the held-back scenes begin here


def get_config(arg: str = ""):
    """The recipe, or its preset ``tiny``."""
    return common.preset(arg, {"": full, "tiny": tiny})()


def full():
    """The published script's stage "chairs" (paper: Sec. 4 and the table of its appendix)."""
    config = common.empty()
    config.model = {"name": "raft", "net": "large", "iterations": 12}  # in training; uvos takes 20 at test
    config.batch_size = 10  # the script's; 12 in the paper
    size = [384, 512]
    config.data = {
        "mixture": [{"name": "synthetic", "count": 22_232, "length": 2, "size": size}],
        "recipe": {"name": "next"},
        # The code scales by 2^-0.1 to 2^1 and stretches a little; a frame is never smaller than the crop, so
        # here it begins at 1. Mirrored left and right with probability .5; upside down (.1) is left out.
        "geometry": {"kind": "random_crop", "scale": [1.0, 2.0], "flip": 0.5},
        # Color jitter of .4; its turns of hue (.16) and the erased patches of the second frame are left out. One draw
        # for both frames, which the code does for 80% of the pairs.
        "color": {"brightness": [0.6, 1.4], "contrast": [0.6, 1.4], "color": [0.6, 1.4]},
        "size": [368, 496], "flow": True,
    }
    config.optimizer = {"name": "adamw", "weight_decay": 1e-4, "eps": 1e-8, "clip_norm": 1.0}
    config.schedule = {"name": "one_cycle", "lr": 4e-4, "anneal": "linear", "pct_start": 0.05, "steps": 100_100}
    config.phases = [{"name": "scenes", "steps": 100_000}]
    config.validate = {"every": 5_000, "synthetic": {"count": 200, "length": 2, "size": size, "seed": _SCENES_APART}}
    return config


def tiny():
    """RAFT small on generated clips, from random weights: many cheap steps on small crops until features match.

    A few steps on larger ones follow, as in the published order of stages: a crop of 64 pixels has maps of 8, and what
    was learned on these alone is lost where correlations come from further away.
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
