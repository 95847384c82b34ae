"""DPA's attention in PyTorch, written from its equations, one example and one prototype at a time.

It is a reference for tests only; import it where torch is known to be installed.
"""

import torch
import torch.nn.functional as F
from torch import nn


def prototypes(x, detached=False):
    """``[c, n]`` embeddings to ``[c, c]``: prototype i is the mean pixel, weighted by the softmax of channel i."""
    made = []
    for channel in x:
        weight = channel.softmax(0)
        weight = weight.detach() if detached else weight
        made.append((x * weight).sum(1))
    return torch.stack(made)


class Attention(nn.Module):
    """Keys and values of a source, mixed for the queries of a map, and fused into that map."""

    def __init__(self, channels, embedding, use_prototypes=True, published=False):
        super().__init__()
        self.use_prototypes, self.published = use_prototypes, published
        self.key, self.value = nn.Conv2d(channels, embedding, 1), nn.Conv2d(channels, embedding, 1)
        self.conv, self.bn = nn.Conv2d(channels + embedding, channels, 1), nn.BatchNorm2d(channels)

    def source(self, maps):
        """Tokens ``[t, c]``, keys and values, of ``[channels, h, w]`` maps, one map after the other."""
        keys, values = [], []
        for x in maps:
            key, value = self.key(x[None])[0].flatten(1), self.value(x[None])[0].flatten(1)
            if self.use_prototypes:
                keys.append(prototypes(key, self.published))
                values.append(keys[-1] if self.published else prototypes(value))
            else:
                keys.append(key.T)
                values.append(value.T)
        return torch.cat(keys), torch.cat(values)

    def forward(self, features, query, sources):
        """``[b, channels, h, w]`` features, ``[b, c, h, w]`` queries, one source for each example."""
        maps = []
        for pixels, (keys, values) in zip(query.flatten(2), sources, strict=True):
            asking = prototypes(pixels, self.published) if self.use_prototypes else pixels.T
            similarity = asking @ keys.T
            if self.published:
                similarity = similarity / pixels.shape[0] ** 0.5
            mixed = similarity.softmax(1) @ values
            if self.use_prototypes:
                maps.append(torch.stack([F.cosine_similarity(p[:, None], pixels, 0) for p in mixed]))
            else:
                maps.append(mixed.T)
        maps = torch.stack(maps).view_as(query)
        return F.relu(self.bn(self.conv(torch.cat([features, maps], 1))))
