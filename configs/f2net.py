"""F2Net (Focus on Foreground Network, AAAI 2021): stills teach the backbone, videos the rest, by turns.

    uvos convert-data davis2016 --source DAVIS --data-dir data
    uvos convert-data msra10k --source MSRA10K --data-dir data
    uvos train --config configs/f2net.py --workdir runs/f2net --data-dir data --config.init.backbone=resnet101.pth

Without MSRA10K: ``--config.data.mixture.0.name=duts`` takes the pictures of DUTS in its place. "code" is what the
authors published, where the paper is silent. Hardware and time of the full recipe: not measured here.
``configs/f2net.py:tiny`` is a small network for a CPU, about a quarter of an hour; README.md has its table:

    uvos convert-data duts --source DUTS --data-dir data
    uvos train --config configs/f2net.py:tiny --workdir runs/f2net_tiny --data-dir data

``tiny_ad`` (appearance diffusion alone) and ``tiny_cgad`` (guided by the center, without attention) see the same
examples for as many steps. Any other row of the paper's Table 1 is ``--config.model.net=ca`` and so on, on any preset.
"""

from . import adnet, common

# 2,079 frames of DAVIS in batches of 16 are 130 steps; with the stills between them an epoch has 195.
EPOCH = 195


def get_config(arg: str = ""):
    """The recipe, or one of its presets."""
    return common.preset(arg, {"": full, "tiny": tiny, "tiny_ad": tiny_ad, "tiny_cgad": tiny_cgad})()


def full():
    """Sec. 4, "Implementation details"."""
    config = common.empty()
    config.model = {"name": "f2net"}
    config.batch_size = 16
    config.data = {
        # Paper: still pictures and videos alternate; code: every third batch is one of stills.
        "mixture": [{"name": "msra10k", "split": "train", "share": 1, "recipe": {"name": "still", "length": 3}},
                    {"name": "davis2016", "split": "train", "share": 2}],
        "alternate": True,
        "recipe": {"name": "previous", "first": True},
        # Code: a crop, scaled by .7 to 1.3, mirrored. There every frame of a clip is moved for itself, after which the
        # previous frame says little of where the object is; here all of them alike. Nor is the picture stretched to a
        # square, or the scale applied to the wrong axes, as there: the crop is square.
        "geometry": {"kind": "random_crop", "short_side": 473, "scale": [0.7, 1.3], "flip": 0.5},
        "size": [473, 473],
        "objects": "foreground",
    }
    config.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "groups": [
        # Code: what is pretrained nearly rests while videos are seen, and all that is new learns ten times as fast.
        # There a whole DeepLabv3 trained on DAVIS is; here the backbone alone, as an ImageNet model has no more.
        # The factors go with the batches: stills, videos, videos.
        {"match": "backbone/.*", "lr": [1.0, 0.01, 0.01]},
        {"match": ".*", "lr": 10.0}]}
    # One curve over both phases, each of which begins with its own count of steps. Paper: power .9; not stated: that
    # it is one curve. Code: halved from the sixth of 60 epochs on.
    config.schedule = {"name": "poly", "lr": 2.5e-4, "power": 0.9}
    # Paper: 20 epochs with the prior around the true center; then around the predicted one. What an epoch is with two
    # datasets is not stated; here each frame of DAVIS is segmented once.
    config.phases = [
        {"name": "true centers", "steps": 20 * EPOCH, "model": {"prior_from": "truth"},
         "schedule": {"steps": 40 * EPOCH}},
        {"name": "own centers", "steps": 20 * EPOCH, "model": {"prior_from": "predicted"},
         "schedule": {"lr": 2.5e-4 * 0.5**0.9}}]
    config.validate = {"every": EPOCH * 5, "name": "davis2016", "split": "val"}
    return config


def tiny():
    """A small network from random weights, without ImageNet: 25 sequences of DAVIS, pictures of DUTS by turns.

    Data, size and optimizer are those of AD-Net's ``:tiny``, with which it is to be compared.
    """
    config, same = full(), adnet.tiny()
    config.model = {"name": "f2net", "depths": [1, 2, 2, 1], "width": 16, "aspp_features": 64, "embedding": 64,
                    "center_features": 32, "center_embedding": 16, "short_side": 81,
                    "lost_below": 0.1,  # after so few steps hardly a peak reaches 0.2
                    # Unsure of what it has never seen, the network would leave it out.
                    "background_weight": 0.45}
    config.batch_size = 8
    config.data = config.data | {
        "mixture": [{"name": "duts", "split": "train", "share": 1, "recipe": {"name": "still", "length": 3}},
                    {"name": "davis2016", "split": "train", "share": 2, "exclude": common.HELD_BACK}],
        # The center is that of the box of all foreground, so with a pasted object it may lie between two. Objects fill
        # much of these frames and mostly overlap: it lies on one of them in 60% of the clips, without pasting in 70%.
        **{key: same.data[key] for key in ("geometry", "paste", "color", "size")},
    }
    # No groups: nothing is pretrained that should rest while videos are seen.
    for key in ("optimizer", "schedule", "ema_decay", "validate", "log_every", "checkpoint_every"):
        config[key] = same[key]
    # As in the paper half of the steps each; Adam begins anew in between, so it warms up once more.
    config.phases = [
        {"name": "true centers", "steps": 500, "model": {"prior_from": "truth"}, "schedule": {"steps": 1_000}},
        {"name": "own centers", "steps": 500, "model": {"prior_from": "predicted"}, "schedule": {"lr": 5e-4}}]
    return config


def tiny_ad():
    """``tiny`` with appearance diffusion alone: no center, the mean of the three maps."""
    return _with_net("ad")


def tiny_cgad():
    """``tiny`` with appearance diffusion that the center guides, and the mean of the three maps."""
    return _with_net("cgad")


def _with_net(name):
    config = tiny()
    config.model = config.model | {"net": name}
    return config
