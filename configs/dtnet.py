"""D-Net and T-Net (CVPR 2021): objects that nobody has marked, found by D-Net, told apart by an embedding.

    uvos convert-data davis2017/unsupervised --source DAVIS --data-dir data
    uvos convert-data youtube_vis --source YouTubeVIS --data-dir data
    uvos train --config configs/dtnet.py --workdir runs/dtnet --data-dir data \\
        --config.init.backbone=resnet50.pth --config.init.target_backbone=resnet101.pth

The paper's implementation details give crops, augmentation and optimizer; what they leave open is marked as ours. T-Net
itself learns nothing beforehand: its target models are trained while a video runs, on features that rest. First the
embedding is trained that verifies proposals, then D-Net, so that the weights that are kept are those of the whole.
Hardware and time of the full recipe: not measured here.

Rows of Table 3, on any preset: without guidance ``--config.model.guidance=False``; what the excitation is squeezed from
``--config.model.squeeze=mixed``. Table 4 needs no training: verification and memory update are switched at inference.

``configs/dtnet.py:youtube_vis`` is the one for YouTube-VIS (2019): the salient head tells its categories apart, and
``category_id`` of ``tracks.json`` is that of the challenge.

``configs/dtnet.py:tiny`` is a small network for a CPU, from random weights; T-Net looks through D-Net's second layer:

    uvos convert-data davis2016 --source DAVIS --data-dir data
    uvos convert-data synthetic --data-dir data --clips 300
    uvos train --config configs/dtnet.py:tiny --workdir runs/dtnet_tiny --data-dir data
"""

from . import common

_EMBEDDING, _DISCOVERY = "reid/.*", "dnet/.*"
_CLIPS_APART = 1_000_000  # seeds of generated clips that no training has
# Of YouTube-VIS 2019 by their number there, from 1.
_CATEGORIES = [
    "person", "giant_panda", "lizard", "parrot", "skateboard", "sedan", "ape", "dog", "snake", "monkey", "hand",
    "rabbit", "duck", "cat", "cow", "fish", "train", "horse", "turtle", "bear", "motorbike", "giraffe", "leopard",
    "fox", "deer", "owl", "surfboard", "airplane", "truck", "zebra", "tiger", "elephant", "snowboard", "boat",
    "shark", "mouse", "frog", "eagle", "earless_seal", "tennis_racket"]


def get_config(arg: str = ""):
    """The recipe, or one of its presets."""
    return common.preset(arg, {"": full, "youtube_vis": youtube_vis, "tiny": tiny})()


def full():
    """The paper's implementation details; "ours" where it is silent."""
    config = common.empty()
    config.model = {"name": "dtnet", "remat": True}
    config.batch_size = 8  # ours
    config.data = {
        # Ours: both at once, and the shares.
        "mixture": [{"name": "youtube_vis", "split": "train", "share": 2},
                    {"name": "davis2017/unsupervised", "split": "train", "share": 1}],
        # Paper: the previous frame and its mask. Ours: gaps, time reversed, and the true mask, perturbed.
        "recipe": {"name": "neighbor", "max_gap": 3, "reverse": 0.5},
        # Paper: crops of 640 pixels, scales, flips. Ours: one pixel more, so that maps of all strides align.
        "geometry": {"kind": "random_crop", "scale": [0.8, 1.5], "flip": 0.5},
        "size": [641, 641],
        "objects": 20,
    }
    config.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
    config.schedule = {"name": "poly", "lr": 0.01, "power": 0.9, "warmup": 1_000}  # paper: poly, .9; ours: the rest
    config.phases = _phases(embedding=20_000, discovery=90_000, objects=6)  # ours
    config.validate = {"every": 5_000, "name": "davis2017/unsupervised", "split": "val", "phases": ["discovery"]}
    return config


def _phases(embedding, discovery, objects):
    """The embedding on whole tracks, then D-Net; what the other one has learned, or the features of T-Net, rests."""
    return [
        {"name": "embedding", "steps": embedding, "model": {"trained_part": "embedding", "max_tracks": objects},
         # A frame from anywhere in the video and two that follow each other: what changes and what stays.
         "data": {"recipe": {"name": "sequence", "length": 2, "max_gap": 10, "reverse": 0.5}, "objects": objects},
         "optimizer": {"groups": [{"match": _EMBEDDING}, {"match": ".*", "lr": 0.0}]}},
        {"name": "discovery", "steps": discovery,
         "optimizer": {"groups": [{"match": _DISCOVERY}, {"match": ".*", "lr": 0.0}]}},
    ]


def youtube_vis():
    """As ``full``, with the categories of YouTube-VIS and on it alone."""
    config = full()
    config.model = config.model | {"categories": len(_CATEGORIES)}
    config.data = config.data | {"mixture": [{"name": "youtube_vis", "split": "train"}], "categories": _CATEGORIES}
    # Ours: its labels of valid are kept back by the challenge, so that the last videos of train would have to be.
    del config.validate
    return config


def tiny():
    """A small network from random weights: generated clips, and 25 sequences of DAVIS with objects pasted into them."""
    config = full()
    config.model = {"name": "dtnet", "depths": [1, 2, 2, 1], "width": 16, "features": 64, "decoder": 64,
                    "own_features": False, "target_channels": 32, "memory": 16, "reid_depths": [1, 1, 1, 1, 1, 1],
                    "reid_width": 8, "reid_hidden": 64, "embedding": 64, "short_side": 145}
    config.batch_size = 6
    config.data = config.data | {
        "mixture": [{"name": "davis2016", "split": "train", "share": 1, "exclude": common.HELD_BACK},
                    {"name": "synthetic", "split": "train", "share": 3}],
        # The whole frame or most of it: what is salient shows by what surrounds it.
        "geometry": {"kind": "random_crop", "short_side": 105, "scale": [0.9, 1.4], "flip": 0.5},
        "paste": 0.3,
        "color": {"brightness": [0.5, 1.5], "contrast": [0.5, 1.5], "color": [0.0, 2.0], "sharpness": [0.0, 3.0]},
        "size": [97, 161],
    }
    # Adam: SGD needs its thousands of steps to leave a random start.
    config.optimizer = {"name": "adamw", "weight_decay": 1e-2, "clip_norm": 5.0}
    config.schedule = {"name": "cosine", "lr": 2e-3, "warmup": 50}
    config.ema_decay = 0.99
    config.phases = _phases(embedding=150, discovery=4_000, objects=4)
    config.validate = {"every": 500, "phases": ["discovery"], "synthetic": {
        "count": 6, "length": 16, "size": [160, 272], "seed": _CLIPS_APART, "objects": [2, 4]}}
    config.log_every = 20
    config.checkpoint_every = 250
    return config
