"""F2Net (Focus on Foreground Network, AAAI 2021), trained on stills and videos in alternation.

    uvos convert-data davis2016 --source DAVIS --data-dir data
    uvos convert-data msra10k --source MSRA10K --data-dir data
    uvos train --config f2net --workdir runs/f2net --data-dir data --config.init.backbone=resnet101.pth

"Paper" marks values of Sec. 4, "code" those of the published code where the paper gives none. Without MSRA10K:
``--config.data.mixture.0.name=duts`` uses the images of DUTS. Hardware, hours and score of the full recipe: not
measured.

Presets, 1,000 steps from random weights, about a quarter of an hour on a CPU; J on five held-back sequences of
DAVIS-2016 train, one seed (``benchmarks/held_back.py``; table in docs/results.md):

- ``f2net:tiny``: the full network. J 45.5 percent.
- ``f2net:tiny_ad``: appearance diffusion alone. J 41.4 percent.
- ``f2net:tiny_cgad``: center-guided appearance diffusion without attention. J 48.5 percent.

      uvos convert-data duts --source DUTS --data-dir data
      uvos train --config f2net:tiny --workdir runs/f2net_tiny --data-dir data

Other rows of Table 1, for any preset: ``--config.model.net=ca`` and so on.
"""

from . import adnet, common

# Steps of an epoch: 130 batches of 16 for the 2,079 frames of DAVIS, and half as many batches of stills.
EPOCH = 195


def get_config(arg: str = ""):
    """Returns the recipe or a preset: ``tiny``, ``tiny_ad``, ``tiny_cgad``."""
    return common.preset(arg, {"": full, "tiny": tiny, "tiny_ad": tiny_ad, "tiny_cgad": tiny_cgad})()


def full():
    """Returns the recipe of Sec. 4, "Implementation details"."""
    config = common.empty()
    config.model = {"name": "f2net"}
    config.batch_size = 16
    config.data = {
        # Paper: stills and videos alternate; code: every third batch has stills.
        "mixture": [{"name": "msra10k", "split": "train", "share": 1, "recipe": {"name": "still", "length": 3}},
                    {"name": "davis2016", "split": "train", "share": 2}],
        "alternate": True,
        "recipe": {"name": "previous", "first": True},
        # Code: a crop scaled by .7 to 1.3, flipped. Ours, unlike the code: all frames of a clip share one geometry, so
        # that the previous frame shows where the object is; the crop is square, where the code stretches the image to
        # a square and applies the scale to the wrong axes.
        "geometry": {"kind": "random_crop", "short_side": 473, "scale": [0.7, 1.3], "flip": 0.5},
        "size": [473, 473],
        "objects": "foreground",
    }
    config.optimizer = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "groups": [
        # Code: pretrained parameters have a hundredth of the learning rate on videos, new ones ten times the rate. In
        # the code a whole DeepLabv3 trained on DAVIS is pretrained; here only the ImageNet backbone.
        # The factors alternate with the batches: stills, videos, videos.
        {"match": "backbone/.*", "lr": [1.0, 0.01, 0.01]},
        {"match": ".*", "lr": 10.0}]}
    # Paper: power .9. Not stated: the horizon; ours: one curve over both phases, each of which counts its own steps.
    # Code: halved from the sixth of 60 epochs on.
    config.schedule = {"name": "poly", "lr": 2.5e-4, "power": 0.9}
    # Paper: 20 epochs with the prior around the ground-truth center, then around the predicted one. Not stated: an
    # epoch with two datasets; ours: each frame of DAVIS once.
    config.phases = [
        {"name": "ground-truth centers", "steps": 20 * EPOCH, "model": {"prior_from": "truth"},
         "schedule": {"steps": 40 * EPOCH}},
        {"name": "predicted centers", "steps": 20 * EPOCH, "model": {"prior_from": "predicted"},
         "schedule": {"lr": 2.5e-4 * 0.5**0.9}}]
    config.validate = {"every": EPOCH * 5, "name": "davis2016", "split": "val"}
    return config


def tiny():
    """Returns a small network from random weights: 25 sequences of DAVIS alternating with stills of DUTS.

    Data, size and optimizer are those of ``adnet:tiny``, for comparison.
    """
    config, same = full(), adnet.tiny()
    config.model = {"name": "f2net", "depths": [1, 2, 2, 1], "width": 16, "aspp_features": 64, "embedding": 64,
                    "center_features": 32, "center_embedding": 16, "short_side": 81,
                    "min_peak_score": 0.1,  # after so few steps peaks rarely reach the default, 0.2
                    # Below 0.5: unseen objects get low scores and would be missed.
                    "background_weight": 0.45}
    config.batch_size = 8
    config.data = config.data | {
        "mixture": [{"name": "duts", "split": "train", "share": 1, "recipe": {"name": "still", "length": 3}},
                    {"name": "davis2016", "split": "train", "share": 2, "exclude": common.HELD_BACK}],
        # The center is that of the bounding box of all foreground and may lie between the object and a pasted one. The
        # objects are large and mostly overlap: the center is on an object in 60% of the clips, without pasting in 70%.
        **{key: same.data[key] for key in ("geometry", "paste", "color", "size")},
    }
    # No groups: no parameters are pretrained.
    for key in ("optimizer", "schedule", "ema_decay", "validate", "log_every", "checkpoint_every"):
        config[key] = same[key]
    # Half of the steps each, as in the paper. The optimizer restarts in between, so it warms up again.
    config.phases = [
        {"name": "ground-truth centers", "steps": 500, "model": {"prior_from": "truth"}, "schedule": {"steps": 1_000}},
        {"name": "predicted centers", "steps": 500, "model": {"prior_from": "predicted"}, "schedule": {"lr": 5e-4}}]
    return config


def tiny_ad():
    """Returns ``tiny`` with appearance diffusion alone: no center, the mean of the three maps."""
    return _with_net("ad")


def tiny_cgad():
    """Returns ``tiny`` with center-guided appearance diffusion and the mean of the three maps."""
    return _with_net("cgad")


def _with_net(name):
    config = tiny()
    config.model = config.model | {"net": name}
    return config
