"""DPA (Dual Prototype Attention, CVPR 2024): appearance and optical flow, trained on stills, then on videos.

    uvos convert-data duts --source DUTS --data-dir data
    uvos convert-data davis2016 --source DAVIS --data-dir data --flow raft --flow-weights raft-sintel.pth
    uvos convert-data youtube_vos --source YouTubeVOS --data-dir data --flow raft --flow-weights raft-sintel.pth
    uvos train --config dpa --workdir runs/dpa --data-dir data --config.init.backbone=vgg16.pth

"Paper" marks values of Sec. 4, "code" those of the published code where the paper gives none. Hardware, hours and score
of the full recipe: not measured.

Presets:

- ``dpa:tiny``: 1.8 million parameters from random weights, 800 steps. About ten minutes on two x86 cores; J 67.7 and
  66.2 percent on five held-back sequences of DAVIS-2016 train with seeds 0 and 1 (table in docs/results.md; measured
  before the flow image was scaled by the 99th percentile of the flow magnitude):

      uvos convert-data davis2016 --source DAVIS --data-dir data --flow dis
      uvos convert-data duts --source DUTS --data-dir data
      uvos convert-data synthetic --data-dir data --flow dis --clips 300
      uvos train --config dpa:tiny --workdir runs/dpa_tiny --data-dir data

- ``dpa:tiny_appearance`` (J 42.7), ``dpa:tiny_motion`` (J 68.6): one stream, with the same examples and steps.

Ablations of Table 1, for any preset: ``--config.model.ima=False``, ``--config.model.ifa=False``.
"""

from . import common

# Paper: the motion stream is initialized from the appearance stream trained on stills.
START_MOTION = [{"from": "appearance_", "to": "motion_"}]


def get_config(arg: str = ""):
    """Returns the recipe or a preset: ``tiny``, ``tiny_appearance``, ``tiny_motion``."""
    return common.preset(arg, {"": full, "tiny": tiny, "tiny_appearance": tiny_appearance,
                               "tiny_motion": tiny_motion})()


def full():
    """Returns the recipe of Sec. 4, "Implementation details"."""
    config = common.empty()
    config.model = {"name": "dpa"}
    config.batch_size = 16  # paper; code 12
    config.data = {
        # Code: crops up to 30 pixels off the margins, rotates one frame in five by up to 15 degrees, flips half of the
        # frames; each frame of a clip independently.
        "geometry": {"kind": "margin_crop", "margin": 30, "turn": 0.2, "degrees": 15, "flip": 0.5, "independent": True},
        # Code: factors of Pillow's enhancers, on frames only.
        "color": {"brightness": [0.5, 1.5], "contrast": [0.5, 1.5], "color": [0.0, 2.0], "sharpness": [0.0, 3.0],
                   "independent": True},
        # Paper: multi-scale, 384 to 512; code: one of these sizes per batch.
        "size": [[side, side] for side in (384, 416, 448, 480, 512)],
        "objects": "foreground",
    }
    config.optimizer = {"name": "adam"}  # paper; code: default betas, no weight decay
    config.schedule = {"name": "cosine", "lr": 1e-4, "end": 1e-5}  # paper; code: updated every step
    config.phases = [
        # Paper: both splits of DUTS. Not stated: the length; ours: 40 epochs of 15,572 images.
        {"name": "stills", "steps": 39_000, "model": {"streams": "appearance"}, "data": {
            "mixture": [{"name": "duts", "split": "train", "share": 2}, {"name": "duts", "split": "test"}],
            "recipe": {"name": "still", "length": 1}}},
        # Code: 200 epochs of the 2,079 frames of DAVIS-2016 train and as many of YouTube-VOS.
        {"name": "videos", "steps": 52_000, "transfer": START_MOTION, "data": {
            "mixture": [{"name": "davis2016", "split": "train"}, {"name": "youtube_vos", "split": "train"}],
            # Paper: "snippets of 4 frames"; code: 4 references (N = 4 as in testing) besides the segmented frame, which
            # may be among them.
            "recipe": {"name": "references", "count": 4},
            "flow": True}},
    ]
    # Only the final network is validated, so that 'best' is never the network of the stills phase.
    config.validate = {"every": 2_000, "name": "davis2016", "split": "val", "phases": ["videos"]}
    return config


def tiny():
    """Returns a small network from random weights: 25 sequences of DAVIS, 499 stills, synthetic clips.

    Flow is DIS with the camera motion subtracted, because the network does not learn to ignore it from so few videos.
    """
    config = full()
    config.model = {"name": "dpa", "width": 12, "embedding": 32, "decoder": 8, "camera": True, "encoder_norm": True,
                    "short_side": 96}
    config.batch_size = 8
    config.data = config.data | {
        "geometry": {"kind": "random_crop", "short_side": 96, "scale": [1.0, 1.2], "flip": 0.5, "independent": True},
        "size": [96, 160],  # one size: every size compiles once per phase
        "paste": 0.3,
    }
    # Ten times the paper's learning rate, for a hundredth of its steps.
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
    """Returns ``tiny`` with the appearance stream alone, which continues on videos without a transfer."""
    config = tiny()
    config.model = config.model | {"streams": "appearance"}
    config.phases[1] = {key: value for key, value in config.phases[1].items() if key != "transfer"}
    return config


def tiny_motion():
    """Returns ``tiny`` with the motion stream alone, initialized from the stills."""
    config = tiny()
    config.model = config.model | {"streams": "motion"}
    return config
