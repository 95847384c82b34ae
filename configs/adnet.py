"""AD-Net (Anchor Diffusion, ICCV 2019) on DAVIS-2016, as its Sec. 4 describes the training.

    uvos convert-data davis2016 --source DAVIS --data-dir data
    uvos train --config configs/adnet.py --workdir runs/adnet --data-dir data \\
        --config.init.backbone=resnet101.pth --config.model.deep_stem=False

The training code was never published; what the paper leaves open is marked "not stated". Hardware and time of the full
recipe: not measured here. ``configs/adnet.py:tiny`` is a small network for a CPU: a quarter of an hour on two cores.
README.md has its table.
"""

from . import common


def get_config(arg: str = ""):
    """The recipe, or one of its presets: ``tiny``, ``small``."""
    return common.preset(arg, {"": full, "tiny": tiny, "small": small})()


def full():
    """Sec. 4, "Implementation details"."""
    config = common.empty()
    # Deep stem: the backbone of the published weights. --config.model.deep_stem=False takes torchvision's ResNet-101.
    config.model = {"name": "adnet", "deep_stem": True}
    config.batch_size = 8
    config.data = {
        # Sec. 3.1: the anchor is the first frame, paired with any frame of its video.
        "mixture": [{"name": "davis2016", "split": "train"}],
        "recipe": {"name": "pair", "first": True},
        # A region of random size that encloses the foreground; multiples of 45 degrees, none with probability .51.
        # Whether both frames share it is not stated; they do, as two frames of a video share a camera.
        "geometry": {"kind": "foreground_crop"},
        "size": [481, 857],  # of the network's input, Sec. 4; that crops are brought to it is not stated
        "objects": "foreground",
    }
    config.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}  # momentum not stated
    # (1 - it / 40,000)^.9 although training ends after 30,000 iterations.
    config.schedule = {"name": "poly", "lr": 0.005, "power": 0.9, "steps": 40_000}
    config.phases = [{"name": "davis", "steps": 30_000}]
    config.validate = {"every": 2_000, "name": "davis2016", "split": "val"}
    return config


def tiny():
    """A network of 1.7 million parameters, for a quarter of an hour on two cores; no ImageNet, no download.

    Five sequences of the training split are held back. What the backbone would know from ImageNet it must learn from
    25 videos, so every other example has an object of another video pasted in.
    """
    config = full()
    config.model = {"name": "adnet", "deep_stem": True, "depths": [1, 2, 2, 1], "width": 16, "aspp_features": 64,
                    "embedding": 64, "hidden": 64, "dropout": 0.2, "short_side": 81,
                    # Unsure of what it has never seen, the network would leave it out.
                    "background_weight": 0.45}
    config.data = config.data | {
        "mixture": [{"name": "davis2016", "split": "train", "exclude": common.HELD_BACK}],
        # Nearly the whole frame: where in it the object tends to be is half of what 25 videos can teach.
        "geometry": {"kind": "random_crop", "short_side": 81, "scale": [1.0, 1.1], "flip": 0.5},
        "paste": 0.5,
        "color": {"brightness": [0.5, 1.5], "contrast": [0.5, 1.5], "color": [0.0, 2.0], "sharpness": [0.0, 3.0]},
        "size": [81, 145],
    }
    # Adam: SGD needs its thousands of iterations to leave a random start.
    config.optimizer = {"name": "adamw", "weight_decay": 1e-2, "clip_norm": 5.0}
    config.schedule = {"name": "cosine", "lr": 1e-3, "warmup": 50}
    config.ema_decay = 0.99
    config.phases = [{"name": "davis", "steps": 1_000}]
    config.validate = {"every": 250, "name": "davis2016", "split": "train", "only": common.HELD_BACK}
    config.log_every = 20
    config.checkpoint_every = 250
    return config


def small():
    """``tiny`` at a larger size on more data, for about an hour.

    It wants ``uvos convert-data`` of ``davis2016``, ``duts`` and ``synthetic``. Of the pictures of DUTS a pair
    is the same picture twice; generated clips add motion and shapes.
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
    # A cosine over 3,000 steps, ended at three quarters: the held-back sequences had not improved since the half.
    config.schedule = config.schedule | {"steps": 3_000}
    config.phases = [{"name": "all", "steps": 2_250}]
    config.validate = config.validate | {"every": 750}
    config.checkpoint_every = 250
    return config
