r"""AD-Net (Anchor Diffusion, ICCV 2019) on DAVIS-2016.

    uvos convert-data davis2016 --source DAVIS --data-dir data
    uvos train --config adnet --workdir runs/adnet --data-dir data \
        --config.init.backbone=resnet101.pth --config.model.deep_stem=False

Values are from Sec. 4 of the paper. The training code was not published; values that the paper does not give are marked
"not stated". Hardware, hours and score of the full recipe: not measured.

Presets, from random weights, with five sequences of DAVIS-2016 train held back:

- ``adnet:tiny``: 1.7 million parameters, 1,000 steps. 16 minutes on one x86 core; J 40.6 and 39.5, F 16.2 and 15.5
  percent with seeds 0 and 1 (``benchmarks/held_back.py``; table in docs/results.md).
- ``adnet:small``: larger frames and more data, 2,250 steps. About an hour on two x86 cores; score not measured.
"""

from . import common


def get_config(arg: str = ""):
    """Returns the recipe or a preset: ``tiny``, ``small``."""
    return common.preset(arg, {"": full, "tiny": tiny, "small": small})()


def full():
    """Returns the recipe of Sec. 4, "Implementation details"."""
    config = common.empty()
    # The published weights have a deep stem. --config.model.deep_stem=False selects torchvision's ResNet-101.
    config.model = {"name": "adnet", "deep_stem": True}
    config.batch_size = 8
    config.data = {
        # Sec. 3.1: the anchor is the first frame, paired with any frame of the same video.
        "mixture": [{"name": "davis2016", "split": "train"}],
        "recipe": {"name": "pair", "first": True},
        # Random crop around the foreground, rotated by a multiple of 45 degrees (not rotated with probability .51).
        # Not stated: whether both frames share it; ours: they do, because frames of a video share a camera.
        "geometry": {"kind": "foreground_crop"},
        "size": [481, 857],  # Sec. 4: network input; not stated: that crops are resized to it
        "objects": "foreground",
    }
    config.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}  # momentum not stated
    # Sec. 4: (1 - it / 40,000)^.9, with 30,000 iterations.
    config.schedule = {"name": "poly", "lr": 0.005, "power": 0.9, "steps": 40_000}
    config.phases = [{"name": "davis", "steps": 30_000}]
    config.validate = {"every": 2_000, "name": "davis2016", "split": "val"}
    return config


def tiny():
    """Returns a small network for a CPU, trained without ImageNet weights.

    Five sequences of the training split are held back. Half of the examples have an object of another video pasted in,
    to add variety to the 25 videos.
    """
    config = full()
    config.model = {"name": "adnet", "deep_stem": True, "depths": [1, 2, 2, 1], "width": 16, "aspp_features": 64,
                    "embedding": 64, "hidden": 64, "dropout": 0.2, "short_side": 81,
                    # Below 0.5: unseen objects get low scores and would be missed.
                    "background_weight": 0.45}
    config.data = config.data | {
        "mixture": [{"name": "davis2016", "split": "train", "exclude": common.HELD_BACK}],
        # Nearly the whole frame: the position of the object is a strong cue with only 25 videos.
        "geometry": {"kind": "random_crop", "short_side": 81, "scale": [1.0, 1.1], "flip": 0.5},
        "paste": 0.5,
        "color": {"brightness": [0.5, 1.5], "contrast": [0.5, 1.5], "color": [0.0, 2.0], "sharpness": [0.0, 3.0]},
        "size": [81, 145],
    }
    # AdamW: SGD needs thousands of iterations from a random initialization.
    config.optimizer = {"name": "adamw", "weight_decay": 1e-2, "clip_norm": 5.0}
    config.schedule = {"name": "cosine", "lr": 1e-3, "warmup": 50}
    config.ema_decay = 0.99
    config.phases = [{"name": "davis", "steps": 1_000}]
    config.validate = {"every": 250, "name": "davis2016", "split": "train", "only": common.HELD_BACK}
    config.log_every = 20
    config.checkpoint_every = 250
    return config


def small():
    """Returns ``tiny`` at a larger size on more data.

    It needs ``uvos convert-data`` of ``davis2016``, ``duts`` and ``synthetic``. A pair of DUTS is the same image twice;
    synthetic clips add motion and shapes.
    """
    config = tiny()
    config.model = config.model | {"depths": [1, 2, 3, 1], "dropout": 0.1, "short_side": 113, "background_weight": 0.6}
    config.data = config.data | {
        "mixture": [{"name": "davis2016", "split": "train", "share": 2, "exclude": common.HELD_BACK},
                    {"name": "duts", "split": "train", "share": 2, "recipe": {"name": "still", "length": 2}},
                    {"name": "synthetic", "split": "train", "share": 1}],
        "geometry": {"kind": "random_crop", "short_side": 113, "scale": [1.0, 1.25], "flip": 0.5},
        "paste": 0.3,
        "size": [113, 201],
    }
    config.ema_decay = 0.995
    # A cosine over 3,000 steps, stopped at 2,250: held-back J had not improved since step 1,500.
    config.schedule = config.schedule | {"steps": 3_000}
    config.phases = [{"name": "all", "steps": 2_250}]
    config.validate = config.validate | {"every": 750}
    config.checkpoint_every = 250
    return config
