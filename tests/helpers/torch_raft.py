"""RAFT in PyTorch, written from its description, with the key names of the published checkpoints.

It is a reference for tests only; import it where torch is known to be installed.
"""

import torch
import torch.nn.functional as F
from torch import nn


def _conv(c_in, c_out, kernel, stride=1):
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    return nn.Conv2d(c_in, c_out, kernel, stride, tuple(k // 2 for k in kernel))


def _norm(kind, channels):
    return {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d, "none": lambda _: nn.Identity()}[kind](channels)


class Block(nn.Module):
    """Residual block; the bottleneck kind has three convolutions and a quarter of the channels inside."""

    def __init__(self, c_in, c_out, stride, bottleneck, norm):
        super().__init__()
        inner = c_out // 4
        shapes = [(c_in, inner, 1, 1), (inner, inner, 3, stride), (inner, c_out, 1, 1)] if bottleneck \
            else [(c_in, c_out, 3, stride), (c_out, c_out, 3, 1)]
        self.length = len(shapes)
        for i, shape in enumerate(shapes, 1):
            setattr(self, f"conv{i}", _conv(*shape))
            setattr(self, f"norm{i}", _norm(norm, shape[1]))
        if stride > 1:
            # The norm of the shortcut is registered under two names, as in the published code.
            last = _norm(norm, c_out)
            setattr(self, f"norm{self.length + 1}", last)
            self.downsample = nn.Sequential(_conv(c_in, c_out, 1, stride), last)

    def forward(self, x):
        y = x
        for i in range(1, self.length + 1):
            y = F.relu(getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(y)))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class Encoder(nn.Module):
    def __init__(self, c_out, stem, widths, bottleneck, norm):
        super().__init__()
        self.conv1, self.norm1 = _conv(3, stem, 7, 2), _norm(norm, stem)
        c_in = stem
        for layer, (width, stride) in enumerate(zip(widths, (1, 2, 2), strict=True), 1):
            blocks = [Block(c_in, width, stride, bottleneck, norm), Block(width, width, 1, bottleneck, norm)]
            setattr(self, f"layer{layer}", nn.Sequential(*blocks))
            c_in = width
        self.conv2 = _conv(c_in, c_out, 1)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        return self.conv2(self.layer3(self.layer2(self.layer1(x))))


class Motion(nn.Module):
    def __init__(self, windows, small):
        super().__init__()
        self.small = small
        if small:
            self.convc1 = _conv(windows, 96, 1)
            self.convf1, self.convf2 = _conv(2, 64, 7), _conv(64, 32, 3)
            self.conv = _conv(96 + 32, 80, 3)
        else:
            self.convc1, self.convc2 = _conv(windows, 256, 1), _conv(256, 192, 3)
            self.convf1, self.convf2 = _conv(2, 128, 7), _conv(128, 64, 3)
            self.conv = _conv(192 + 64, 126, 3)

    def forward(self, window, flow):
        seen = F.relu(self.convc1(window))
        if not self.small:
            seen = F.relu(self.convc2(seen))
        moved = F.relu(self.convf2(F.relu(self.convf1(flow))))
        return torch.cat([F.relu(self.conv(torch.cat([seen, moved], 1))), flow], 1)


class GRU(nn.Module):
    def __init__(self, hidden, inputs, small):
        super().__init__()
        self.steps = [("", (3, 3))] if small else [("1", (1, 5)), ("2", (5, 1))]
        for name, kernel in self.steps:
            for gate in "zrq":
                setattr(self, f"conv{gate}{name}", _conv(hidden + inputs, hidden, kernel))

    def forward(self, h, x):
        for name, _ in self.steps:
            z, r, q = (getattr(self, f"conv{gate}{name}") for gate in "zrq")
            both = torch.cat([h, x], 1)
            update, reset = z(both).sigmoid(), r(both).sigmoid()
            h = (1 - update) * h + update * q(torch.cat([reset * h, x], 1)).tanh()
        return h


class FlowHead(nn.Module):
    def __init__(self, hidden, inner):
        super().__init__()
        self.conv1, self.conv2 = _conv(hidden, inner, 3), _conv(inner, 2, 3)

    def forward(self, h):
        return self.conv2(F.relu(self.conv1(h)))


class Update(nn.Module):
    def __init__(self, hidden, context, windows, small):
        super().__init__()
        self.encoder = Motion(windows, small)
        self.gru = GRU(hidden, context + (82 if small else 128), small)
        self.flow_head = FlowHead(hidden, 128 if small else 256)
        if not small:
            self.mask = nn.Sequential(_conv(hidden, 256, 3), nn.ReLU(), _conv(256, 576, 1))

    def forward(self, h, context, window, flow):
        h = self.gru(h, torch.cat([context, self.encoder(window, flow)], 1))
        return h, self.flow_head(h)


def sample(volume, x, y):
    """Bilinear values of ``[n, 1, h, w]`` at pixel coordinates ``[n, a, b]``; zero outside."""
    h, w = volume.shape[-2:]
    grid = torch.stack([2 * x / (w - 1) - 1, 2 * y / (h - 1) - 1], -1)
    return F.grid_sample(volume, grid, align_corners=True)[:, 0]


def window(volumes, points, radius):
    """``[b, levels * (2 radius + 1)**2, h, w]`` from volumes ``[b h w, 1, h_l, w_l]`` around points ``[b, 2, h, w]``.

    The first axis of a window moves along x.
    """
    b, _, h, w = points.shape
    flat = points.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
    steps = torch.arange(-radius, radius + 1, dtype=points.dtype)
    read = []
    for level, volume in enumerate(volumes):
        x = flat[..., 0] / 2**level + steps[:, None]
        y = flat[..., 1] / 2**level + steps[None, :]
        x, y = torch.broadcast_tensors(x, y)
        read.append(sample(volume, x, y).reshape(b, h, w, -1))
    return torch.cat(read, -1).permute(0, 3, 1, 2)


def volumes_of(first, second, levels=4):
    b, c, h, w = first.shape
    volume = (first.flatten(2).transpose(1, 2) @ second.flatten(2) / c**0.5).reshape(b * h * w, 1, h, w)
    made = [volume]
    for _ in range(levels - 1):
        made.append(F.avg_pool2d(made[-1], 2))
    return made


class TorchRAFT(nn.Module):
    """``forward(image1, image2, iterations) -> intermediates``; images in 0..255, sides multiples of 8."""

    def __init__(self, net="large"):
        super().__init__()
        self.small = net == "small"
        self.hidden, context, self.radius = (96, 64, 3) if self.small else (128, 128, 4)
        shape = (32, (32, 64, 96), True) if self.small else (64, (64, 96, 128), False)
        self.fnet = Encoder(128 if self.small else 256, *shape, "instance")
        self.cnet = Encoder(self.hidden + context, *shape, "none" if self.small else "batch")
        self.update_block = Update(self.hidden, context, 4 * (2 * self.radius + 1) ** 2, self.small)

    def upsample(self, h, flow):
        b, _, height, width = flow.shape
        if self.small:
            return 8 * F.interpolate(flow, scale_factor=8, mode="bilinear", align_corners=True)
        weights = (0.25 * self.update_block.mask(h)).view(b, 1, 9, 8, 8, height, width).softmax(2)
        near = F.unfold(8 * flow, 3, padding=1).view(b, 2, 9, 1, 1, height, width)
        fine = (weights * near).sum(2)  # b, 2, 8, 8, height, width
        return fine.permute(0, 1, 4, 2, 5, 3).reshape(b, 2, 8 * height, 8 * width)

    def forward(self, image1, image2, iterations, start=None, every=False):
        """``every``: the upsampled flow of each iteration, as training wants it, in ``flows``."""
        image1, image2 = 2 * (image1 / 255) - 1, 2 * (image2 / 255) - 1
        first, second = self.fnet(torch.cat([image1, image2])).chunk(2)
        cnet = self.cnet(image1)
        h, context = cnet[:, :self.hidden].tanh(), cnet[:, self.hidden:].relu()
        volumes = volumes_of(first, second)
        rows, columns = torch.meshgrid(torch.arange(first.shape[2]), torch.arange(first.shape[3]), indexing="ij")
        grid = torch.stack([columns, rows]).to(first.dtype)[None]
        flow = torch.zeros_like(grid).repeat(len(first), 1, 1, 1) if start is None else start
        seen, flows = {"fmap1": first, "fmap2": second, "cnet": cnet}, []
        for i in range(iterations):
            flow = flow.detach()
            read = window(volumes, grid + flow, self.radius)
            h, delta = self.update_block(h, context, read, flow)
            flow = flow + delta
            if every:
                flows.append(self.upsample(h, flow))
            if i == 0 and start is None:
                seen |= {"corr": read, "net_iter1": h, "delta_iter1": delta}
        return seen | {"low": flow, "flow": self.upsample(h, flow), "flows": flows}
