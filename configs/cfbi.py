"""CFBI (Foreground-Background Integration, ECCV 2020): segmentation of prompted objects, YouTube-VOS and DAVIS-2017.

    uvos convert-data youtube_vos --source YouTubeVOS --data-dir data
    uvos convert-data davis2017/semi --source DAVIS --data-dir data
    uvos train --config cfbi --workdir runs/cfbi --data-dir data --config.init.backbone=resnet101.pth

"Paper" marks values of Sec. 4, "code" those of the published configuration where the paper gives none. The published
weights start from a DeepLabv3+ trained on COCO; here only the backbone is pretrained. Hardware (two GPUs in the paper),
hours and score of the full recipes: not measured.

Presets:

- ``cfbi:davis``: the paper's recipe for DAVIS-2017 alone.
- ``cfbi:official``: the schedule of the published configuration: each frame is predicted from the previous ground truth
  in the first half of the steps and from the previous prediction afterwards, and the share of mined hard pixels falls
  from 1 to 0.15.
- ``cfbi:tiny``: a small network from random weights, 2,000 steps. About an hour on one x86 core; J 66.3 and 72.1
  percent on five held-back sequences of DAVIS-2016 train with seeds 0 and 1 (``benchmarks/cfbi_tiny.py``):

      uvos convert-data davis2016 --source DAVIS --data-dir data
      uvos convert-data synthetic --data-dir data --clips 300
      uvos train --config cfbi:tiny --workdir runs/cfbi_tiny --data-dir data

Ablations of Tables 4 and 5, for any preset whose phases do not set these values:

- no background in pixel matching, or in instance attention: ``--config.model.background_matching=False``,
  ``--config.model.background_attention=False``; no bias of distances: ``--config.model.match_bias=False``
- one local window: ``--config.model.multi_local=False``
- no sequential training, one predicted frame per clip: ``--config.data.recipe.length=2``
- no collaborative ensembler: ``--config.model.ensembler=False``
- no balanced crop: ``--config.data.geometry.balanced=False``
- no instance attention: ``--config.model.instance_attention=False``
- the baseline, close to FEELVOS: all of them
"""

from . import common

_STEPS = 100_000


def get_config(arg: str = ""):
    """Returns the recipe or a preset: ``davis``, ``official``, ``tiny``."""
    return common.preset(arg, {"": full, "davis": davis, "official": official, "tiny": tiny})()


def full():
    """Returns the recipe of Sec. 4, "Implementation details"."""
    config = common.empty()
    config.model = {"name": "cfbi", "max_objects": 10, "remat": True}
    config.batch_size = 8  # paper: two GPUs, 4 on each
    config.data = {
        # Code: DAVIS is repeated 30 times, which is a third of all videos.
        "mixture": [{"name": "youtube_vos", "split": "train", "share": 2},
                    {"name": "davis2017/semi", "split": "train", "share": 1}],
        # Sec. 3.5: a random reference, the previous frame, and N = 3 predicted frames. Code: gaps of up to 3 frames,
        # half of the clips reversed.
        "recipe": {"name": "sequence", "length": 4, "max_gap": 3, "reverse": 0.5},
        # Paper: flips, scaling, and crops with enough of the reference's objects. Code: these values.
        "geometry": {"kind": "random_crop", "short_side": 480, "scale": [1.0, 1.3], "flip": 0.5, "balanced": True},
        "size": [465, 465],
        "objects": 10,
    }
    config.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 15e-5,  # code, for all parameters
                        "clip_norm": 5.0,  # code
                        # Code: batch norm of the pretrained backbone is frozen, with its scales and biases.
                        "groups": [{"match": r"backbone/.*bn\d?/(scale|bias)", "lr": 0.0}]}
    config.batch_norm = "frozen"
    config.schedule = {"name": "poly", "lr": 0.01, "power": 0.9, "warmup": 1_000}  # paper; code: warm-up
    config.phases = [{"name": "sequences", "steps": _STEPS}]
    config.validate = {"every": 5_000, "name": "davis2017/semi", "split": "val"}
    return config


def davis():
    """Returns the paper's recipe for DAVIS-2017 alone."""
    config = full()
    config.data = config.data | {"mixture": [{"name": "davis2017/semi", "split": "train"}]}
    config.batch_size = 6  # paper: two GPUs, 3 on each
    config.schedule = config.schedule | {"lr": 0.006}
    config.phases = [{"name": "sequences", "steps": 50_000}]
    return config


def official():
    """Returns the published schedule: from half of the steps on, a frame is predicted from the previous prediction."""
    config = full()
    half = _STEPS // 2
    config.model = config.model | {"variant": "official", "bootstrap_steps": half}
    # The second phase has a new optimizer and continues the learning rate of the first one.
    warmup = config.schedule["warmup"]
    config.phases = [
        {"name": "ground-truth labels", "steps": half, "model": {"use_predicted_masks": False},
         "schedule": {"steps": _STEPS}},
        {"name": "predicted labels", "steps": half, "model": {"use_predicted_masks": True},
         "schedule": {"lr": 0.01 * (half / (_STEPS - warmup)) ** 0.9, "warmup": 0}}]
    return config


def tiny():
    """Returns a small network from random weights: 25 sequences of DAVIS with pasted objects, and synthetic clips.

    Crops of a quarter of the frame are cheap, and objects are large in them. Two object slots suffice in training,
    because all slots share their parameters.
    """
    config = full()
    steps = 2_000
    config.model = {"name": "cfbi", "depths": [1, 1, 2, 1], "width": 16, "features": 48, "embedding": 32,
                    "max_objects": 2, "embedding_scale": 0.3, "references": 2, "short_side": 209,
                    # At least 57% of the pixels count: on the hardest pixels alone, a small network
                    # learns to predict with low confidence.
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
    # AdamW: SGD needs thousands of steps from a random initialization.
    config.optimizer = {"name": "adamw", "weight_decay": 1e-2, "clip_norm": 5.0}
    config.schedule = {"name": "cosine", "lr": 2e-3, "warmup": 100}
    config.batch_norm = "sync"  # no pretrained statistics to keep
    config.ema_decay = 0.99
    config.phases = [{"name": "all", "steps": steps}]
    config.validate = {"every": 500, "name": "davis2016", "split": "train", "only": common.HELD_BACK}
    config.log_every = 20
    config.checkpoint_every = 200
    return config
