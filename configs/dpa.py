"""DPA (Dual Prototype Attention, CVPR 2024): stills teach the appearance stream, videos with optical flow both.

    uvos convert-data duts --source DUTS --data-dir data
    uvos convert-data davis2016 --source DAVIS --data-dir data --flow raft --flow-weights raft-sintel.pth
    uvos convert-data youtube_vos --source YouTubeVOS --data-dir data --flow raft --flow-weights raft-sintel.pth
    uvos train --config configs/dpa.py --workdir runs/dpa --data-dir data --config.init.backbone=vgg16.pth

"paper" is what the authors write; "code" what they published, where the paper is silent. Hardware and time of the full
recipe: not measured here. ``configs/dpa.py:tiny`` is a small network for a CPU, about ten minutes on two cores:

    uvos convert-data davis2016 --source DAVIS --data-dir data --flow dis
    uvos convert-data duts --source DUTS --data-dir data
    uvos convert-data synthetic --data-dir data --flow dis --clips 300
    uvos train --config configs/dpa.py:tiny --workdir runs/dpa_tiny --data-dir data

``tiny_appearance`` and ``tiny_motion`` train one stream on the same examples for as many steps. Rows of Table 1 are
``--config.model.ima=False``, ``--config.model.ifa=False`` and so on, on any preset.
"""

from . import common

# Paper: the appearance stream, trained on stills, also starts the motion stream.
START_MOTION = [{"from": "appearance_", "to": "motion_"}]


def get_config(arg: str = ""):
    """The recipe, or one of its presets."""
    return common.preset(arg, {"": full, "tiny": tiny, "tiny_appearance": tiny_appearance,
                               "tiny_motion": tiny_motion})()


def full():
    """Sec. 4, "Implementation details"."""
    config = common.empty()
    config.model = {"name": "dpa"}
    config.batch_size = 16  # paper; code 12
    config.data = {
        # Code: frames lose up to 30 pixels of margin, one in five is turned by up to 15 degrees, half are mirrored;
        # every frame of a clip for itself.
        "geometry": {"kind": "margin_crop", "margin": 30, "turn": 0.2, "degrees": 15, "flip": 0.5, "independent": True},
        # Code: factors of Pillow's enhancers, on frames alone.
        "color": {"brightness": [0.5, 1.5], "contrast": [0.5, 1.5], "color": [0.0, 2.0], "sharpness": [0.0, 3.0],
                   "independent": True},
        # Paper: multi-scale, 384 to 512; code: each batch has one of these.
        "size": [[side, side] for side in (384, 416, 448, 480, 512)],
        "objects": "foreground",
    }
    config.optimizer = {"name": "adam"}  # paper; code: the usual betas, no weight decay
    config.schedule = {"name": "cosine", "lr": 1e-4, "end": 1e-5}  # paper; code: falls with every step
    config.phases = [
        # Paper: DUTS, both of its splits. How long is not stated: 40 epochs of 15,572 pictures.
        {"name": "stills", "steps": 39_000, "model": {"streams": "appearance"}, "data": {
            "mixture": [{"name": "duts", "split": "train", "share": 2}, {"name": "duts", "split": "test"}],
            "recipe": {"name": "still", "length": 1}}},
        # Code: 200 epochs of all 2,079 frames of DAVIS-2016 train and as many of YouTube-VOS.
        {"name": "videos", "steps": 52_000, "transfer": START_MOTION, "data": {
            "mixture": [{"name": "davis2016", "split": "train"}, {"name": "youtube_vos", "split": "train"}],
            # Paper: "snippets of 4 frames"; as in the code these are 4 references beside the frame that is segmented,
            # N = 4 as in a test. The code draws them even if they are that frame.
            "recipe": {"name": "references", "count": 4},
            "flow": True}},
    ]
    # The weights of stills alone are not what a user wants, however well they do.
    config.validate = {"every": 2_000, "name": "davis2016", "split": "val", "phases": ["videos"]}
    return config


def tiny():
    """A small network from random weights, without ImageNet: 25 sequences of DAVIS, 499 stills, generated clips.

    Flow is that of ``dis`` less the motion of the camera, which so few videos cannot teach.
    """
    config = full()
    config.model = {"name": "dpa", "width": 12, "embedding": 32, "decoder": 8, "camera": True, "encoder_norm": True,
                    "short_side": 96}
    config.batch_size = 8
    config.data = config.data | {
        "geometry": {"kind": "random_crop", "short_side": 96, "scale": [1.0, 1.2], "flip": 0.5, "independent": True},
        "size": [96, 160],  # one size: each is compiled anew in every phase
        "paste": 0.3,
    }
    # Ten times the rate of the paper, for a hundredth of its steps.
    config.optimizer = {"name": "adamw", "weight_decay": 1e-2, "clip_norm": 5.0}
    config.schedule = {"name": "cosine", "lr": 1e-3, "end": 1e-5, "warmup": 50}
    config.ema_decay = 0.99
    config.phases = [
        {"name": "stills", "steps": 200, "model": {"streams": "appearance"}, "data": {
            "mixture": [{"name": "duts", "split": "train", "share": 2},
                        {"name": "davis2016", "split": "train", "exclude": common.HELD_BACK}],
            "recipe": {"name": "still", "length": 1}}},
        {"name": "videos", "steps": 600, "transfer": START_MOTION, "data": {
            "mixture": [{"name": "davis2016", "split": "train", "share": 4, "exclude": common.HELD_BACK},
                        {"name": "synthetic", "split": "train", "share": 1}],
            "recipe": {"name": "references", "count": 1},
            "flow": True}},
    ]
    config.validate = {"every": 200, "name": "davis2016", "split": "train", "only": common.HELD_BACK,
                       "phases": ["videos"]}
    config.log_every = 20
    config.checkpoint_every = 200
    return config


def tiny_appearance():
    """``tiny`` that sees frames alone: the videos go on where the stills end."""
    config = tiny()
    config.model = config.model | {"streams": "appearance"}
    config.phases[1] = {key: value for key, value in config.phases[1].items() if key != "transfer"}
    return config


def tiny_motion():
    """``tiny`` that sees flow alone, and begins with what the stills taught."""
    config = tiny()
    config.model = config.model | {"streams": "motion"}
    return config
