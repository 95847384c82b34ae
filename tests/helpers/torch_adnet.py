"""AD-Net in PyTorch, written from its description, with the key names of the published checkpoints.

It is a reference for tests only; import it where torch is known to be installed.
"""

import torch
import torch.nn.functional as F
from torch import nn

# What stands beside the current frame's embedding in front of the classifier.
BESIDE = {
    "base": (),
    "concat": ("embed",),
    "intra": ("intra",),
    "anchor": ("anchor",),
    "full": ("anchor", "intra"),
}


class InPlaceABN(nn.Module):
    """Batch norm that scales by ``|weight| + 1e-5``, optionally followed by a leaky ReLU."""

    def __init__(self, channels, slope=None):
        super().__init__()
        self.slope = slope
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        scale = (self.weight.abs() + 1e-5) * torch.rsqrt(self.running_var + 1e-5)
        y = (x - self.running_mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]
        return y if self.slope is None else F.leaky_relu(y, self.slope)


def _conv(c_in, c_out, k, stride=1, dilation=1, bias=False):
    return nn.Conv2d(c_in, c_out, k, stride, dilation * (k // 2), dilation, bias=bias)


def _unit(c_in, c_out, k, dilation=1):
    return nn.Sequential(_conv(c_in, c_out, k, dilation=dilation), InPlaceABN(c_out, 0.01))


class Block(nn.Module):
    def __init__(self, c_in, planes, stride, dilation, first):
        super().__init__()
        self.conv1, self.bn1 = _conv(c_in, planes, 1), InPlaceABN(planes)
        self.conv2, self.bn2 = _conv(planes, planes, 3, stride, dilation), InPlaceABN(planes)
        self.conv3, self.bn3 = _conv(planes, 4 * planes, 1), InPlaceABN(4 * planes)
        if first:
            self.downsample = nn.Sequential(_conv(c_in, 4 * planes, 1, stride), InPlaceABN(4 * planes))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class Pyramid(nn.Module):
    def __init__(self, c_in, features):
        super().__init__()
        self.conv1 = _unit(c_in, features, 1)
        self.conv2 = _unit(c_in, features, 3, 12)
        self.conv3 = _unit(c_in, features, 3, 24)
        self.conv4 = _unit(c_in, features, 3, 36)
        self.image_pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), _conv(c_in, features, 1),
                                           InPlaceABN(features, 0.01))
        self.conv_bn_dropout = nn.Sequential(_conv(5 * features, features, 1), InPlaceABN(features, 0.01))

    def forward(self, x):
        pooled = F.interpolate(self.image_pooling(x), x.shape[-2:], mode="bilinear", align_corners=True)
        parts = [self.conv1(x), self.conv2(x), self.conv3(x), self.conv4(x), pooled]
        return self.conv_bn_dropout(torch.cat(parts, 1))


class Encoder(nn.Module):
    """Dilated deep-stem ResNet with two heads."""

    def __init__(self, depths, width, aspp_features, channels, deep_stem):
        super().__init__()
        stem = [(3, width, 3, 2), (width, width, 3, 1), (width, 2 * width, 3, 1)] if deep_stem \
            else [(3, width, 7, 2)]
        self.stem_length = len(stem)
        for i, (c_in, c_out, k, stride) in enumerate(stem, 1):
            setattr(self, f"conv{i}", _conv(c_in, c_out, k, stride))
            setattr(self, f"bn{i}", InPlaceABN(c_out))
        c_in = stem[-1][1]
        dilations = ([1], [1], [2], [4, 8, 16])
        for layer, (blocks, stride, dilation) in enumerate(
            zip(depths, (1, 2, 1, 1), dilations, strict=True), 1
        ):
            planes, made = width * 2 ** (layer - 1), []
            for i in range(blocks):
                made.append(
                    Block(c_in, planes, stride if i == 0 else 1, dilation[min(i, len(dilation) - 1)], i == 0)
                )
                c_in = 4 * planes
            setattr(self, f"layer{layer}", nn.Sequential(*made))
        self.head = nn.Sequential(
            Pyramid(32 * width, aspp_features), _conv(aspp_features, channels, 1, bias=True)
        )
        # The published list has a dropout at index 2; evaluation skips it, the keys count it.
        self.dsn = nn.Sequential(
            _conv(16 * width, aspp_features, 3),
            InPlaceABN(aspp_features, 0.01),
            nn.Identity(),
            _conv(aspp_features, channels, 1, bias=True),
        )

    def forward(self, x):
        seen = {}
        for i in range(1, self.stem_length + 1):
            x = F.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        x = seen["stem"] = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        for i in range(1, 5):
            x = seen[f"layer{i}"] = getattr(self, f"layer{i}")(x)
        seen["aspp"] = self.head[0](x)
        seen["embed"] = self.head[1](seen["aspp"])
        seen["aux"] = self.dsn(seen["layer3"])
        return seen


class TorchADNet(nn.Module):
    """``forward(ref, cur) -> (logits at stride 8, intermediates)``; arguments as the library's ``ADNet``."""

    def __init__(
        self,
        net="full",
        depths=(3, 4, 23, 3),
        width=64,
        deep_stem=True,
        aspp_features=512,
        embedding=128,
        hidden=128,
    ):
        super().__init__()
        self.net = net
        self.features = Encoder(depths, width, aspp_features, 1 if net == "base" else embedding, deep_stem)
        if net != "base":
            self.cls = nn.Sequential(_conv((1 + len(BESIDE[net])) * embedding, hidden, 1, bias=True),
                                     InPlaceABN(hidden, 0.01), nn.Identity(), _conv(hidden, 1, 1, bias=True))

    def published_state_dict(self):
        """Arrays by published name: the base net was saved without the outer module."""
        module = self.features if self.net == "base" else self
        return {key: value.detach().numpy().copy() for key, value in module.state_dict().items()}

    def load_published(self, arrays):
        module = self.features if self.net == "base" else self
        module.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})
        return self

    def forward(self, ref, cur):
        seen = {f"ref_{k}": v for k, v in self.features(ref).items()}
        seen |= {f"cur_{k}": v for k, v in self.features(cur).items()}
        if self.net == "base":
            return seen["cur_embed"], seen
        anchor, frame = seen["ref_embed"], seen["cur_embed"]
        keys = frame.flatten(2)
        beside = {"embed": anchor}
        for name, queries in (("anchor", anchor), ("intra", frame)):
            scores = queries.flatten(2).transpose(1, 2) @ keys / frame.shape[1] ** 0.5
            seen[f"P_{name}"] = scores.softmax(-1)
            mixed = seen[f"P_{name}"] @ keys.transpose(1, 2)
            seen[f"feat_{name}"] = beside[name] = mixed.transpose(1, 2).reshape(frame.shape)
        x = torch.cat([*(beside[name] for name in BESIDE[self.net]), frame], 1)
        return self.cls(x), seen
