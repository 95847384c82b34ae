"""CFBI in PyTorch, written from its description, with the key names of the published checkpoints.

Widths follow from the tensors. Matching computes the whole distance matrix, one object at a time. It is a reference for
tests only; import it where torch is known to be installed.
"""

import math

import torch
import torch.nn.functional as F

FAR, EPSILON = 5e4, 1e-5
WINDOWS = 12, 2, 4, 6, 8, 10  # the order of the channels


def resize(x, size):
    """Resizes bilinearly with aligned corners."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def nearest(labels, size):
    """Resizes ``[h, w]`` integer labels."""
    return F.interpolate(labels[None, None].float(), size, mode="nearest")[0, 0].long()


def average(embedding, mask):
    """Returns the sum ``[c]`` over a mask ``[h, w]`` of ``[c, h, w]``, and the number of its pixels."""
    return (embedding * mask).sum((1, 2)), mask.sum()


def others(maps):
    """Returns for each of ``[ids, k, h, w]`` the minimum of all others; a single id is its own background."""
    if len(maps) == 1:
        return maps
    return torch.stack([torch.cat([maps[:i], maps[i + 1:]]).min(0).values for i in range(len(maps))])


class TorchCFBI:
    """One video at a time; by default the published evaluation step.

    Args:
        weights: Arrays by published key; their tensors are in ``p`` and can require gradients.
        atrous: Stride at which reference pixels are sampled, in both directions.
    """

    def __init__(self, weights, atrous=1):
        self.p = {key: torch.tensor(value) for key, value in weights.items()}
        self.atrous = atrous

    def conv(self, x, key, stride=1, dilation=1, groups=1):
        weight, bias = self.p[f"{key}.weight"], self.p.get(f"{key}.bias")
        return F.conv2d(x, weight, bias, stride, dilation * (weight.shape[-1] // 2), dilation, groups)

    def batch_norm(self, x, key):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(self.p[f"{key}.{name}"] for name in names), eps=EPSILON)

    def group_norm(self, x, key, groups=32):
        groups = math.gcd(groups, x.shape[1])  # of a small network fewer
        return F.group_norm(x, groups, self.p[f"{key}.weight"], self.p[f"{key}.bias"], EPSILON)

    def encode(self, image):
        """Returns every layer of DeepLabv3+ and the embedding of ``[1, 3, h, w]``."""
        top = "feature_extracter."
        x = F.relu(self.batch_norm(self.conv(image, f"{top}backbone.conv1", 2), f"{top}backbone.bn1"))
        x = F.max_pool2d(x, 3, 2, 1)
        tensors = {}
        for layer in range(1, 5):
            blocks = len({key.split(".")[3] for key in self.p if key.startswith(f"{top}backbone.layer{layer}.")})
            for i in range(blocks):
                stride = 2 if layer in (2, 3) and i == 0 else 1
                x = self._residual(x, f"{top}backbone.layer{layer}.{i}", stride, 2 ** (i + 1) if layer == 4 else 1)
            tensors["low" if layer == 1 else f"l{layer}"] = x
        parts = []
        for i, rate in enumerate((1, 6, 12, 18), 1):
            branch = f"{top}aspp.aspp{i}"
            parts.append(F.relu(self.batch_norm(self.conv(x, f"{branch}.atrous_conv", 1, rate), f"{branch}.bn")))
        pooled = self.conv(x.mean((2, 3), keepdim=True), f"{top}aspp.global_avg_pool.1")
        parts.append(F.relu(self.batch_norm(pooled, f"{top}aspp.global_avg_pool.2")).expand_as(parts[0]))
        x = F.relu(self.batch_norm(self.conv(torch.cat(parts, 1), f"{top}aspp.conv1"), f"{top}aspp.bn1"))
        tensors["aspp"] = x
        low = F.relu(self.batch_norm(self.conv(tensors["low"], f"{top}decoder.conv1"), f"{top}decoder.bn1"))
        x = torch.cat([resize(x, low.shape[2:]), low], 1)
        for convolution, norm in ((0, 1), (4, 5)):
            key = f"{top}decoder.last_conv."
            x = F.relu(self.batch_norm(self.conv(x, f"{key}{convolution}"), f"{key}{norm}"))
        tensors["dec"] = x
        x = F.relu(self.group_norm(self.conv(x, "seperate_conv", groups=x.shape[1]), "bn1"))
        x = self.conv(x, "embedding_conv")
        return tensors | {"emb": F.relu(self.group_norm(x, "bn2", x.shape[1] // 4))}

    def _residual(self, x, key, stride, dilation):
        y = F.relu(self.batch_norm(self.conv(x, f"{key}.conv1"), f"{key}.bn1"))
        y = F.relu(self.batch_norm(self.conv(y, f"{key}.conv2", stride, dilation), f"{key}.bn2"))
        y = self.batch_norm(self.conv(y, f"{key}.conv3"), f"{key}.bn3")
        if f"{key}.downsample.0.weight" in self.p:
            x = self.batch_norm(self.conv(x, f"{key}.downsample.0", stride), f"{key}.downsample.1")
        return F.relu(x + y)

    def value(self, distances):
        """Maps squared distances ``[ids, ...]`` to 0..1; background first."""
        bias = self.p["fg_bias"].flatten().expand(len(distances))
        bias = torch.cat([self.p["bg_bias"].flatten(), bias[1:]]).reshape(-1, *[1] * (distances.ndim - 1))
        return 2 * (torch.sigmoid(distances + bias) - 0.5)

    def match_references(self, embedding, references, ids):
        """``[ids, 1, h, w]`` from ``[c, h, w]`` and a list of ``([c, h, w], [h, w] labels)``."""
        keys = torch.cat([x[:, ::self.atrous, ::self.atrous].flatten(1) for x, _ in references], 1)
        labels = torch.cat([y[::self.atrous, ::self.atrous].flatten() for _, y in references])
        known = (labels >= 0) & (labels < ids)
        keys, labels = keys[:, known], labels[known]
        if not known.any():
            return torch.ones(ids, 1, *embedding.shape[1:])
        distance = (embedding.flatten(1)[:, :, None] - keys[:, None]).square().sum(0)
        least = torch.stack([(distance + FAR * (labels != i)).min(1).values for i in range(ids)])
        return self.value(least).reshape(ids, 1, *embedding.shape[1:])

    def match_windows(self, embedding, previous, labels, ids):
        """Matches ``[c, h, w]`` embeddings and ``[h, w]`` labels at half their size; returns ``[ids, 6, h, w]``."""
        whole = embedding.shape[1:]
        h, w = size = tuple(n // 2 + 1 for n in whole)
        query, keys = (resize(x[None], size)[0] for x in (embedding, previous))
        labels, r = nearest(labels, size), max(WINDOWS)
        keys, labels = F.pad(keys, [r] * 4), F.pad(labels, [r] * 4, value=-1)
        distances = {}
        for dy in range(-r, r + 1):
            for dx in range(-r, r + 1):
                there = slice(r + dy, r + dy + h), slice(r + dx, r + dx + w)
                distance = (query - keys[:, *there]).square().sum(0)
                allowed = labels[there] == torch.arange(ids)[:, None, None]
                distances[dy, dx] = torch.where(allowed, distance, torch.tensor(FAR))
        least = [torch.stack([d for at, d in distances.items() if max(map(abs, at)) <= n]).min(0).values
                 for n in WINDOWS]
        return resize(self.value(torch.stack(least, 1)), whole)

    def instance_head(self, references, previous, labels, ids):
        """``[ids, 4 c]``: mean embeddings in and outside each object, of the references and of the previous frame."""
        rows = []
        for i in range(ids):
            row = []
            for frames in (references, [(previous, labels)]):
                for inside in (True, False):
                    parts = [average(x, ((y == i) == inside).float()) for x, y in frames]
                    total, count = (sum(column) for column in zip(*parts, strict=True))
                    row.append(total / (count + EPSILON))
            rows.append(torch.cat(row))
        return torch.stack(rows)

    def gate(self, x, head, number):
        """Instance attention on ``[ids, c, h, w]``."""
        key = f"dynamic_seghead.IA{number}.IA."
        return x * (1 + torch.tanh(head @ self.p[f"{key}weight"].T + self.p[f"{key}bias"]))[..., None, None]

    def channel_gate(self, x, key):
        alpha, gamma, beta = (self.p[f"{key}.{name}"] for name in ("alpha", "gamma", "beta"))
        strength = (x.square().sum((2, 3), keepdim=True) + EPSILON).sqrt() * alpha
        norm = gamma / (strength.square().mean(1, keepdim=True) + EPSILON).sqrt()
        return x * (1 + torch.tanh(strength * norm + beta))

    def _block(self, x, key, stride, dilation):
        y = self.conv(self.channel_gate(x, f"{key}.GCT1"), f"{key}.conv1")
        y = self.conv(F.relu(self.group_norm(y, f"{key}.bn1")), f"{key}.conv2", stride, dilation)
        y = self.group_norm(self.conv(F.relu(self.group_norm(y, f"{key}.bn2")), f"{key}.conv3"), f"{key}.bn3")
        if f"{key}.downsample.0.weight" in self.p:
            x = self.group_norm(self.conv(x, f"{key}.downsample.0", stride), f"{key}.downsample.1")
        return F.relu(x + y)

    def ensemble(self, x, low, head):
        """Returns logits ``[1, ids, h, w]`` of ``[ids, c, h, w]`` maps of all objects, and the intermediates."""
        top, tensors = "dynamic_seghead.", {}
        low = low.expand(len(x), -1, -1, -1)
        for i, (stride, dilation) in enumerate(((1, 1), (1, 2), (2, 1), (1, 2), (1, 4), (2, 1), (1, 2), (1, 4)), 1):
            x = tensors[f"ce_layer{i}"] = self._block(self.gate(x, head, i), f"{top}layer{i}", stride, dilation)
        x, parts = self.gate(x, head, 9), []
        for i, rate in enumerate((1, 6, 12, 18), 1):
            branch = f"{top}ASPP.aspp{i}"
            y = self.conv(self.channel_gate(x, f"{branch}.GCT"), f"{branch}.atrous_conv", 1, rate)
            parts.append(F.relu(self.group_norm(y, f"{branch}.bn")))
        pooled = F.relu(self.conv(x.mean((2, 3), keepdim=True), f"{top}ASPP.global_avg_pool.1"))
        parts.append(pooled.expand_as(parts[0]))
        x = self.conv(self.channel_gate(torch.cat(parts, 1), f"{top}ASPP.GCT"), f"{top}ASPP.conv1")
        x = tensors["ce_aspp"] = F.relu(self.group_norm(x, f"{top}ASPP.bn1"))
        fine = self.conv(self.channel_gate(torch.cat([low, tensors["ce_layer2"]], 1), f"{top}GCT_sc"), f"{top}conv_sc")
        fine = F.relu(self.group_norm(fine, f"{top}bn_sc", 16))
        x = torch.cat([F.interpolate(x, fine.shape[2:], mode="bicubic", align_corners=True), fine], 1)
        for number, name in ((10, "1"), (11, "2")):
            x = self.conv(self.gate(x, head, number), f"{top}conv{name}")
            x = F.relu(self.group_norm(x, f"{top}bn{name}"))
        logits = []
        for ground in ("fg", "bg"):
            made = head @ self.p[f"{top}IA_final_{ground}.weight"].T + self.p[f"{top}IA_final_{ground}.bias"]
            logits.append(torch.einsum("nchw,nc->nhw", x, made[:, :-1]) + made[:, -1, None, None])
        foreground, background = logits
        if len(x) > 1:
            foreground = torch.cat([foreground[:1] + background[1:].min(0).values, foreground[1:]])
        return tensors | {"logits": foreground[None]}

    def step(self, references, previous, labels, features, count):
        """Returns logits and intermediates.

        Args:
            references: List of ``(embedding [1, c, h, w], labels of any size)``.
            previous: Embedding ``[1, c, h, w]`` of the previous frame.
            labels: Labels of the previous frame, any size; objects are 1 to ``count``.
            features: Result of ``encode``.
            count: Number of objects.
        """
        ids, embedding, size = count + 1, features["emb"][0], features["emb"].shape[2:]
        references = [(x[0], nearest(y, size)) for x, y in references]
        previous, labels = previous[0], nearest(labels, size)
        far = self.match_references(embedding, references, ids)
        near = self.match_windows(embedding, previous, labels, ids)
        mask = (labels == torch.arange(ids)[:, None, None]).float()[:, None]
        maps = torch.cat([far, near, mask, others(near), others(far)], 1)
        x = self.group_norm(self.conv(maps, "dynamic_prehead.conv"), "dynamic_prehead.bn", 16)
        tensors = {"prehead_in": maps, "prehead_out": F.relu(x)}
        tensors["att_head"] = head = self.instance_head(references, previous, labels, ids)
        both = [embedding.expand(ids, -1, -1, -1), previous * mask, previous * (1 - mask)]
        return tensors | self.ensemble(torch.cat([*both, tensors["prehead_out"]], 1), features["low"], head)

    def evaluate(self, ref, ref_label, prev, prev_label, cur, obj_num):
        """Returns all tensors of a reference file from its inputs as arrays."""
        frames = {"ref": ref, "prev": prev, "cur": cur}
        ref, prev, cur = (self.encode(torch.from_numpy(x)) for x in frames.values())
        references = [(x[None], torch.from_numpy(y[0])) for x, y in zip(ref["emb"], ref_label, strict=True)]
        labels = torch.from_numpy(prev_label[0, 0])
        tensors = self.step(references, prev["emb"], labels, cur, int(obj_num))
        tensors |= {f"cur_{name}": x for name, x in cur.items()} | {"ref_emb": ref["emb"], "prev_emb": prev["emb"]}
        return tensors | {"logits_s4": tensors["logits"], "prob": resize(tensors["logits"], labels.shape).softmax(1)}
