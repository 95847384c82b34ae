"""F2Net in PyTorch, written from its description, with the key names of the published checkpoints.

It is a reference for tests only; import it where torch is known to be installed.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.torch_adnet import _conv as conv


def smooth(seed, height, width, cell=16):
    """Returns the synthetic image ``[3, h, w]`` in 0..1 that a reference file names by its seed."""
    rng = np.random.Generator(np.random.PCG64(seed))
    grid = rng.random((3, height // cell + 2, width // cell + 2))
    for axis, length in ((1, height), (2, width)):
        position = np.linspace(0, grid.shape[axis] - 1, length)
        base = np.minimum(np.floor(position).astype(int), grid.shape[axis] - 2)
        share = (position - base).reshape([-1 if i == axis else 1 for i in range(3)])
        grid = np.take(grid, base, axis) * (1 - share) + np.take(grid, base + 1, axis) * share
    return np.clip(grid + 0.02 * rng.standard_normal((3, height, width)), 0, 1).astype(np.float32)


def network_input(seed, height, width):
    """Returns that image ``[1, 3, h, w]`` as 0..255 minus the mean color."""
    mean = np.float32([104.00699, 116.66877, 122.67892])[:, None, None]
    return torch.from_numpy(smooth(seed, height, width) * np.float32(255) - mean)[None]


def diffuse(queries, frame, prior=None):
    """Returns ``[b, c, h, w]`` maps: attention of every query over the frame; the prior multiplies the keys."""
    keys = frame if prior is None else frame * prior
    likeness = torch.einsum("bcij,bcuv->bijuv", queries, keys) / frame.shape[1] ** 0.5
    weights = likeness.flatten(3).softmax(-1)
    return torch.einsum("bijn,bcn->bcij", weights, frame.flatten(2))


class Bottleneck(nn.Module):
    """The Caffe form: the stride lies in the first convolution."""

    def __init__(self, c_in, planes, stride, dilation, first):
        super().__init__()
        self.conv1, self.bn1 = conv(c_in, planes, 1, stride), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3, dilation=dilation), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = conv(planes, 4 * planes, 1), nn.BatchNorm2d(4 * planes)
        self.downsample = None
        if first:
            self.downsample = nn.Sequential(conv(c_in, 4 * planes, 1, stride), nn.BatchNorm2d(4 * planes))

    def forward(self, x):
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class Pyramid(nn.Module):
    def __init__(self, c_in, features, embedding):
        super().__init__()
        self.conv, self.bn_x = conv(c_in, features, 1, bias=True), nn.BatchNorm2d(features)
        for i, rate in enumerate((1, 6, 12, 18)):
            setattr(self, f"conv2d_{i}", conv(c_in, features, 3 if i else 1, dilation=rate, bias=True))
            setattr(self, f"bn_{i}", nn.BatchNorm2d(features))
        self.bottleneck, self.bn = conv(5 * features, embedding, 3, bias=True), nn.BatchNorm2d(embedding)
        self.prelu = nn.PReLU()

    def forward(self, x):
        pooled = F.relu(self.bn_x(self.conv(x.mean((2, 3), keepdim=True))))
        parts = [pooled.expand(-1, -1, *x.shape[2:])]
        for i in range(4):
            parts.append(F.relu(getattr(self, f"bn_{i}")(getattr(self, f"conv2d_{i}")(x))))
        return self.prelu(self.bn(self.bottleneck(torch.cat(parts, 1))))


class Encoder(nn.Module):
    def __init__(self, depths, width, features, embedding):
        super().__init__()
        self.conv1, self.bn1 = conv(3, width, 7, 2), nn.BatchNorm2d(width)
        c_in = width
        for layer, (blocks, stride, dilation) in enumerate(zip(depths, (1, 2, 1, 1), (1, 1, 2, 4), strict=True)):
            planes = width << layer
            blocks_of_layer = [Bottleneck(4 * planes if i else c_in, planes, 1 if i else stride, dilation, i == 0)
                               for i in range(blocks)]
            setattr(self, f"layer{layer + 1}", nn.Sequential(*blocks_of_layer))
            c_in = 4 * planes
        self.layer5 = Pyramid(c_in, features, embedding)
        self.main_classifier = conv(embedding, 1, 1, bias=True)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1, ceil_mode=True)
        tensors = {"maxpool": x}
        for i in range(1, 5):
            x = tensors[f"l{i}"] = getattr(self, f"layer{i}")(x)
        return tensors | {"aspp": self.layer5(x)}


class UpUnit(nn.Module):
    def __init__(self, c_in, features, first, last_features=None):
        super().__init__()
        self.u_skip, self.bn1 = conv(c_in, features, 1), nn.BatchNorm2d(features)
        if not first:
            self.up_conv, self.bn2 = conv(features, features, 1), nn.BatchNorm2d(features)
        if last_features:
            self.cross_conv, self.bn5 = conv(features, last_features, 1), nn.BatchNorm2d(last_features)

    def forward(self, x, deeper):
        y = self.bn1(self.u_skip(x))
        if deeper is not None:
            larger = F.interpolate(deeper, x.shape[2:], mode="bilinear", align_corners=False)
            y = y + self.bn2(self.up_conv(larger))
        return F.relu(y)


class Upsample(nn.Module):
    def __init__(self, width, features, last_features):
        super().__init__()
        for i in range(1, 5):
            setattr(self, f"up{i}", UpUnit(64 * width >> i, features, i == 1, last_features if i == 4 else None))

    def forward(self, maps):
        """Upsamples from the last layer's map to the first's."""
        y = None
        for i, x in enumerate(maps, 1):
            y = getattr(self, f"up{i}")(x, y)
        return F.relu(self.up4.bn5(self.up4.cross_conv(y))), y


class TorchF2Net(nn.Module):
    """F2Net with the attention of every variant and net; returns all intermediates.

    Args:
        order: Order of the attentions: "c" for channels, "s" for space; "" for the mean of the three maps, None for the
            frame's own map alone.
        prior: "no", "keys" (Eq. 5 and 6) or "rows" (the published code's commented-out lines).
    """

    def __init__(self, order="c", prior="no", depths=(3, 4, 23, 3), width=64, aspp_features=512, embedding=256,
                 center_features=256, center_embedding=64):
        super().__init__()
        self.order, self.prior = order, prior
        self.encoder = Encoder(depths, width, aspp_features, embedding)
        self.upsample = Upsample(width, center_features, center_embedding)
        self.fc = nn.Sequential(conv(center_embedding, center_features, 3, bias=True), nn.ReLU(),
                                conv(center_features, 1, 1, bias=True))
        self.motion_conv_w = conv(center_embedding + 1, 1, 1, bias=True)
        self.motion_conv_b = conv(center_embedding + 1, 1, 1, bias=True)
        squeezed = max(4, embedding // 16)
        self.channel_attention_conv1 = conv(embedding, squeezed, 1)
        self.channel_attention_bn = nn.BatchNorm2d(squeezed)
        self.channel_attention_conv2 = conv(squeezed, 3 * embedding, 1)
        self.spatial_attention_conv = conv(embedding, 3, 1)
        self.cls = nn.Sequential(conv(embedding, embedding, 1, bias=True), nn.BatchNorm2d(embedding), nn.ReLU(),
                                 conv(embedding, 1, 1, bias=True))

    def load_published(self, arrays):
        self.load_state_dict({key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()})
        return self

    def channels(self, maps):
        """Returns logits ``[b, 3 c, 1, 1]`` of three maps, and the maps times their channel weights."""
        mean = sum(maps).mean((2, 3), keepdim=True)
        logits = self.channel_attention_conv2(F.relu(self.channel_attention_bn(self.channel_attention_conv1(mean))))
        weights = logits.unflatten(1, (3, -1)).softmax(1)
        return logits, [x * weights[:, i] for i, x in enumerate(maps)]

    def spatial(self, maps):
        """Returns three maps times their weights for every pixel."""
        weights = self.spatial_attention_conv(sum(maps)).softmax(1)
        return [x * weights[:, i:i + 1] for i, x in enumerate(maps)]

    def fuse(self, inter, intra, current):
        """Fuses three maps ``[b, c, h, w]``; also returns the channel logits, or None."""
        if self.order is None:
            return current, None
        maps, logits = [inter, intra, current], None
        if not self.order:
            return sum(maps) / 3, None
        for kind in self.order:
            if kind == "c":
                logits, maps = self.channels(maps)
            else:
                maps = self.spatial(maps)
        return sum(maps), logits

    def heat(self, layers, previous):
        """Returns heat logits and their parts from the frame's layers and the previous map ``[b, 1, h, w]``."""
        embedded, up = self.upsample([layers[f"l{i}"] for i in (4, 3, 2, 1)])
        both = torch.cat([embedded, previous], 1)
        appearance = self.fc(embedded)
        gated = torch.sigmoid(self.motion_conv_w(both)) * previous + torch.sigmoid(self.motion_conv_b(both))
        return {"up": embedded, "up4": up, "heat_fc": appearance, "heat": gated + appearance}

    def match(self, anchor, frame, prior):
        """Diffuses ``[b, c, h, w]`` embeddings between and within frames; prior ``[b, 1, h, w]``."""
        on_keys = prior if self.prior == "keys" else None
        diffused = [diffuse(queries, frame, on_keys) for queries in (anchor, frame)]
        return [x * prior for x in diffused] if self.prior == "rows" else diffused

    def forward(self, anchor, frame, previous, prior=None):
        first, now = self.encoder(anchor), self.encoder(frame)
        tensors = {f"ref_{k}": v for k, v in first.items()} | {f"cur_{k}": v for k, v in now.items()}
        tensors |= self.heat(now, previous)
        inter, intra = self.match(first["aspp"], now["aspp"], prior)
        fused, ca_logits = self.fuse(inter, intra, now["aspp"])
        tensors |= {"inter": inter, "intra": intra, "cls_in": fused}
        if ca_logits is not None:
            tensors["ca_logits"] = ca_logits
        tensors["logits"], tensors["static"] = self.cls(fused), self.encoder.main_classifier(now["aspp"])
        for name, low in (("pred", tensors["logits"]), ("temp", tensors["static"])):
            resized = F.interpolate(low, frame.shape[2:], mode="bilinear", align_corners=False)
            tensors[name] = torch.sigmoid(resized)
        return tensors


def gauss(center, height, width, step=1):
    """Returns the prior ``[b, 1, h', w']`` around ``[b, 2]`` (x, y) in pixels of the input, at every ``step``-th pixel.

    Its width is proportional to the input, and at least ``step``.
    """
    y, x = torch.meshgrid(torch.arange(0, height, step), torch.arange(0, width, step), indexing="ij")
    squared = (x - center[:, 0, None, None]) ** 2 + (y - center[:, 1, None, None]) ** 2
    sigma = max(15 * min(height, width) / 473, step)
    return torch.exp(-squared / (2 * sigma**2))[:, None]


def published_prior(center, height=473, width=473):
    """Returns ``[b, 1, h', w']`` at stride 8: drawn at the size of the input, then resized."""
    size = (height - 1) // 8 + 1, (width - 1) // 8 + 1
    return F.interpolate(gauss(center, height, width), size, mode="bilinear", align_corners=False)
