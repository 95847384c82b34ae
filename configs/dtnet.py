r"""D-Net and T-Net (CVPR 2021): discovery and tracking of several objects without prompts.

    uvos convert-data davis2017/unsupervised --source DAVIS --data-dir data
    uvos convert-data youtube_vis --source YouTubeVIS --data-dir data
    uvos train --config dtnet --workdir runs/dtnet --data-dir data \
        --config.init.backbone=resnet50.pth --config.init.target_backbone=resnet101.pth

"Paper" marks values of the implementation details (crops, augmentation, optimizer), "ours" values that the paper does
not give. T-Net needs no training: its target models are optimized at inference on fixed features. The first phase
trains the embedding that verifies proposals, the second D-Net, so that ``best`` contains both. Hardware, hours and
score of the full recipe: not measured.

Presets:

- ``dtnet:youtube_vis``: YouTube-VIS 2019 alone; the salient head classifies its categories, and ``category_id`` of
  ``tracks.json`` is that of the challenge. Not measured.
- ``dtnet:tiny``: a small network from random weights; T-Net uses the second layer of D-Net's backbone. 82 minutes on
  one x86 core for D-Net; J&F 36.4 percent on ten held-back synthetic clips (``benchmarks/dtnet_tiny.py``):

      uvos convert-data davis2016 --source DAVIS --data-dir data
      uvos convert-data synthetic --data-dir data --clips 300
      uvos train --config dtnet:tiny --workdir runs/dtnet_tiny --data-dir data

Ablations of Table 3, for any preset: without guidance ``--config.model.guidance=False``; input of the excitation
``--config.model.squeeze=mixed``. Table 4 needs no training: verification and memory update are options of inference.
"""

from . import common

_EMBEDDING, _DISCOVERY = "reid/.*", "dnet/.*"
_CLIPS_APART = 1_000_000  # seeds of validation clips, apart from those of training
# Categories of YouTube-VIS 2019 in the order of their ids, from 1.
_CATEGORIES = [
    "person", "giant_panda", "lizard", "parrot", "skateboard", "sedan", "ape", "dog", "snake", "monkey", "hand",
    "rabbit", "duck", "cat", "cow", "fish", "train", "horse", "turtle", "bear", "motorbike", "giraffe", "leopard",
    "fox", "deer", "owl", "surfboard", "airplane", "truck", "zebra", "tiger", "elephant", "snowboard", "boat",
    "shark", "mouse", "frog", "eagle", "earless_seal", "tennis_racket"]


def get_config(arg: str = ""):
    """Returns the recipe or a preset: ``youtube_vis``, ``tiny``."""
    return common.preset(arg, {"": full, "youtube_vis": youtube_vis, "tiny": tiny})()


def full():
    """Returns the recipe of the paper's implementation details."""
    config = common.empty()
    config.model = {"name": "dtnet", "remat": True}
    config.batch_size = 8  # ours
    config.data = {
        # Ours: the mixture and its shares.
        "mixture": [{"name": "youtube_vis", "split": "train", "share": 2},
                    {"name": "davis2017/unsupervised", "split": "train", "share": 1}],
        # Paper: the previous frame and its mask. Ours: gaps, reversal, and perturbation of the ground-truth mask.
        "recipe": {"name": "neighbor", "max_gap": 3, "reverse": 0.5},
        # Paper: crops of 640 pixels, scaling, flips. Ours: 641, so that feature maps of all strides align.
        "geometry": {"kind": "random_crop", "scale": [0.8, 1.5], "flip": 0.5},
        "size": [641, 641],
        "objects": 20,
    }
    # Paper: SGD; the source of momentum and weight decay is not recorded.
    config.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
    # Paper: poly, power .9; ours: rate and warm-up.
    config.schedule = {"name": "poly", "lr": 0.01, "power": 0.9, "warmup": 1_000}
    config.phases = _phases(embedding=20_000, discovery=90_000, objects=6)  # ours
    config.validate = {"every": 5_000, "name": "davis2017/unsupervised", "split": "val", "phases": ["discovery"]}
    return config


def _phases(embedding, discovery, objects):
    """Returns the phases: the embedding on tracks, then D-Net. All other parameters are frozen in each."""
    return [
        {"name": "embedding", "steps": embedding, "model": {"trained_part": "embedding", "max_tracks": objects},
         # Ours: a random frame of the video and two consecutive ones, for large and small changes of appearance.
         "data": {"recipe": {"name": "sequence", "length": 2, "max_gap": 10, "reverse": 0.5}, "objects": objects},
         "optimizer": {"groups": [{"match": _EMBEDDING}, {"match": ".*", "lr": 0.0}]}},
        {"name": "discovery", "steps": discovery,
         "optimizer": {"groups": [{"match": _DISCOVERY}, {"match": ".*", "lr": 0.0}]}},
    ]


def youtube_vis():
    """Returns ``full`` on YouTube-VIS alone, with its categories."""
    config = full()
    config.model = config.model | {"categories": len(_CATEGORIES)}
    config.data = config.data | {"mixture": [{"name": "youtube_vis", "split": "train"}], "categories": _CATEGORIES}
    # The challenge does not publish labels of its split valid; validation would need held-back videos of train.
    del config.validate
    return config


def tiny():
    """Returns a small network from random weights: synthetic clips, and 25 sequences of DAVIS with pasted objects."""
    config = full()
    config.model = {"name": "dtnet", "depths": [1, 2, 2, 1], "width": 16, "features": 64, "decoder": 64,
                    "use_target_backbone": False, "target_channels": 32, "memory": 16,
                    "reid_depths": [1, 1, 1, 1, 1, 1], "reid_width": 8, "reid_hidden": 64, "embedding": 64,
                    "short_side": 145}
    config.batch_size = 6
    config.data = config.data | {
        "mixture": [{"name": "davis2016", "split": "train", "share": 1, "exclude": common.HELD_BACK},
                    {"name": "synthetic", "split": "train", "share": 3}],
        # Most of the frame: saliency depends on the surroundings.
        "geometry": {"kind": "random_crop", "short_side": 105, "scale": [0.9, 1.4], "flip": 0.5},
        "paste": 0.3,
        "color": {"brightness": [0.5, 1.5], "contrast": [0.5, 1.5], "color": [0.0, 2.0], "sharpness": [0.0, 3.0]},
        "size": [97, 161],
    }
    # AdamW: SGD needs thousands of steps from a random initialization.
    config.optimizer = {"name": "adamw", "weight_decay": 1e-2, "clip_norm": 5.0}
    config.schedule = {"name": "cosine", "lr": 2e-3, "warmup": 50}
    config.ema_decay = 0.99
    config.phases = _phases(embedding=150, discovery=4_000, objects=4)
    config.validate = {"every": 500, "phases": ["discovery"], "synthetic": {
        "count": 6, "length": 16, "size": [160, 272], "seed": _CLIPS_APART, "objects": [2, 4]}}
    config.log_every = 20
    config.checkpoint_every = 250
    return config
