"""The PyTorch side of a training step of AD-Net; import it where torch is known to be installed."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.torch_adnet import InPlaceABN, TorchADNet


class TrainableNorm(nn.BatchNorm2d):
    """Plain batch norm under the names of :class:`InPlaceABN`, whose ``|weight| + 1e-5`` becomes the weight."""

    def __init__(self, abn):
        super().__init__(len(abn.weight))
        self.load_state_dict(abn.state_dict(), strict=False)
        self.weight.data = abn.weight.data.abs() + 1e-5
        self.slope = abn.slope

    def forward(self, x):
        y = super().forward(x)
        return y if self.slope is None else F.leaky_relu(y, self.slope)


class Halves(nn.Module):
    """Encodes anchors and frames as one batch, so that they share batch statistics, and returns the halves in order."""

    def __init__(self, encoder, ref, cur):
        super().__init__()
        seen = encoder(torch.cat([ref, cur]))
        self.halves = [{k: v[i * len(ref):(i + 1) * len(ref)] for k, v in seen.items()} for i in (0, 1)]

    def forward(self, x):
        return self.halves.pop(0)


def trainable(net: TorchADNet) -> TorchADNet:
    """Replaces every norm of ``net`` by one that PyTorch can train."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, InPlaceABN):
                setattr(module, name, TrainableNorm(child))
    return net


def loss(net, ref, cur, mask):
    """Mean cross-entropy on logits brought to the mask's size."""
    encoder = net.features
    net.features = Halves(encoder, ref, cur)
    logits, _ = net(ref, cur)
    net.features = encoder
    logits = F.interpolate(logits, mask.shape[-2:], mode="bilinear", align_corners=True)
    return F.binary_cross_entropy_with_logits(logits, mask)


def sgd_steps(net, batches, lr, horizon):
    """SGD with momentum 0.9, decay 5e-4 and the poly schedule; returns the losses."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, horizon, 0.9)
    # Parameters outside the loss decay too, as they would with a loss on every head.
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    losses = []
    for ref, cur, mask in batches:
        optimizer.zero_grad(set_to_none=False)
        value = loss(net, *(torch.from_numpy(x).permute(0, 3, 1, 2).contiguous() for x in (ref, cur, mask)))
        value.backward()
        optimizer.step()
        schedule.step()
        losses.append(value.item())
    return losses
