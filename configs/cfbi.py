"""CFBI (Foreground-Background Integration, ECCV 2020): objects of given masks, on YouTube-VOS and DAVIS-2017.

    uvos convert-data youtube_vos --source YouTubeVOS --data-dir data
    uvos convert-data davis2017/semi --source DAVIS --data-dir data
    uvos train --config configs/cfbi.py --workdir runs/cfbi --data-dir data --config.init.backbone=resnet101.pth

``configs/cfbi.py:davis`` is the recipe for DAVIS-2017 alone, ``configs/cfbi.py:official`` the schedule of the published
configuration: true labels before the frame that is predicted in the first half of the steps, its own ones afterwards,
and a share of hard pixels that falls from 1 to 0.15. Published weights start from a DeepLabv3+ of COCO; here the
backbone alone is pretrained. Hardware and time of the full recipes: not measured here.

Rows of Tables 4 and 5, on any preset without phases that say otherwise:

- no background in pixel matching, or in instance attention: ``--config.model.background_matching=False``,
  ``--config.model.background_attention=False``; no bias of distances: ``--config.model.match_bias=False``
- one local window: ``--config.model.multi_local=False``
- no sequential training, one frame a clip: ``--config.data.recipe.length=2``
- no collaborative ensembler: ``--config.model.ensembler=False``
- no balanced crop: ``--config.data.geometry.balanced=False``
- no instance attention: ``--config.model.instance_attention=False``
- the baseline, close to FEELVOS: all of them

``configs/cfbi.py:tiny`` is a small network for a CPU, from random weights:

    uvos convert-data davis2016 --source DAVIS --data-dir data
    uvos convert-data synthetic --data-dir data --clips 300
    uvos train --config configs/cfbi.py:tiny --workdir runs/cfbi_tiny --data-dir data
"""

from . import common

_STEPS = 100_000


def get_config(arg: str = ""):
    """The recipe, or one of its presets."""
    return common.preset(arg, {"": full, "davis": davis, "official": official, "tiny": tiny})()


def full():
    """Sec. 4, "Implementation details"; "code" is what the published configuration says where the paper is silent."""
    config = common.empty()
    config.model = {"name": "cfbi", "max_objects": 10, "remat": True}
    config.batch_size = 8  # paper: two GPUs, 4 on each
    config.data = {
        # Code: DAVIS counts 30 times. That is a third of all videos.
        "mixture": [{"name": "youtube_vos", "split": "train", "share": 2},
                    {"name": "davis2017/semi", "split": "train", "share": 1}],
        # A random reference, the frame before, and N = 3 that are predicted (Sec. 3.5). Code: up to 3 frames apart,
        # half of the clips backwards.
        "recipe": {"name": "sequence", "length": 4, "max_gap": 3, "reverse": 0.5},
        # Paper: flips, scaling, and crops that hold enough of the reference's objects. Code: these numbers.
        "geometry": {"kind": "random_crop", "short_side": 480, "scale": [1.0, 1.3], "flip": 0.5, "balanced": True},
        "size": [465, 465],
        "objects": 10,
    }
    config.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 15e-5,  # code: of all parameters
                        "clip_norm": 5.0,  # code
                        # Batch norm of the pretrained backbone is frozen, its scales and biases, too.
                        "groups": [{"match": r"backbone/.*bn\d?/(scale|bias)", "lr": 0.0}]}
    config.batch_norm = "frozen"
    config.schedule = {"name": "poly", "lr": 0.01, "power": 0.9, "warmup": 1_000}  # code: the warm-up
    config.phases = [{"name": "sequences", "steps": _STEPS}]
    config.validate = {"every": 5_000, "name": "davis2017/semi", "split": "val"}
    return config


def davis():
    """Paper: DAVIS-2017 alone."""
    config = full()
    config.data = config.data | {"mixture": [{"name": "davis2017/semi", "split": "train"}]}
    config.batch_size = 6  # 3 on each GPU
    config.schedule = config.schedule | {"lr": 0.006}
    config.phases = [{"name": "sequences", "steps": 50_000}]
    return config


def official():
    """Code: sequences are fed with their own labels from the half of the training on."""
    config = full()
    half = _STEPS // 2
    config.model = config.model | {"variant": "official", "bootstrap_steps": half}
    # The second phase's optimizer begins anew where the learning rate of the first one ended.
    warmup = config.schedule["warmup"]
    config.phases = [
        {"name": "true labels", "steps": half, "model": {"use_predicted_masks": False}, "schedule": {"steps": _STEPS}},
        {"name": "own labels", "steps": half, "model": {"use_predicted_masks": True},
         "schedule": {"lr": 0.01 * (half / (_STEPS - warmup)) ** 0.9, "warmup": 0}}]
    return config


def tiny():
    """A small network from random weights: 25 sequences of DAVIS, with objects pasted from others, and made-up clips.

    Crops of a quarter of the frame cost little and show objects large. What two places have learned serves any number.
    """
    config = full()
    steps = 2_000
    config.model = {"name": "cfbi", "depths": [1, 1, 2, 1], "width": 16, "features": 48, "embedding": 32, "max_objects": 2,
                    "embedding_scale": 0.3, "references": 2, "short_side": 209,
                    # Never fewer than 57% of the pixels: of the hardest ones alone a small network learns to be unsure.
                    "bootstrap_steps": 2 * steps}
    config.batch_size = 3
    config.data = config.data | {
        "mixture": [{"name": "davis2016", "split": "train", "share": 1, "exclude": common.HELD_BACK},
                    {"name": "synthetic", "split": "train", "share": 2}],
        "geometry": {"kind": "random_crop", "short_side": 177, "scale": [1.0, 1.3], "flip": 0.5, "balanced": True},
        "paste": 0.4,
        "color": {"brightness": [0.5, 1.5], "contrast": [0.5, 1.5], "color": [0.0, 2.0], "sharpness": [0.0, 3.0]},
        "size": [97, 161],
        "objects": 2,
    }
    # Adam: SGD needs its thousands of steps to leave a random start.
    config.optimizer = {"name": "adamw", "weight_decay": 1e-2, "clip_norm": 5.0}
    config.schedule = {"name": "cosine", "lr": 2e-3, "warmup": 100}
    config.batch_norm = "sync"  # nothing is pretrained
    config.ema_decay = 0.99
    config.phases = [{"name": "all", "steps": steps}]
    config.validate = {"every": 500, "name": "davis2016", "split": "train", "only": common.HELD_BACK}
    config.log_every = 20
    config.checkpoint_every = 200
    return config
