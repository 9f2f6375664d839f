"""Outputs and gradients of PyTorch's convolution and pooling, for tests/nn.rs.

Writes layers.safetensors beside this file. Inputs are not stored: both sides
make them with the same formula. Computed in float64, stored in float32.

    python tests/golden/nn/layers.py

Made with PyTorch 2.15.0 on a CPU.
"""

import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

# name: inputs, outputs, kernel, stride, padding, groups, bias; batch, height, width
CONVOLUTIONS = {
    "stride": (1, 4, 3, 2, 0, 1, True, 2, 9, 9),
    "padding": (3, 5, 3, 1, 1, 1, True, 2, 5, 7),
    "groups": (4, 6, 3, 2, 1, 2, False, 2, 7, 6),
    "depthwise": (4, 8, 3, 1, 1, 4, True, 1, 6, 5),
    "wide": (2, 3, 5, 3, 2, 1, False, 1, 11, 8),
    "one": (3, 9, 1, 1, 0, 1, True, 2, 4, 5),
    "gaps": (2, 3, 2, 3, 1, 1, True, 3, 8, 7),
    "whole": (3, 4, 4, 1, 0, 1, True, 2, 4, 4),
    "many": (3, 17, 3, 1, 0, 1, False, 11, 4, 4),
}
# name: kernel, stride, padding; batch, channels, height, width
POOLS = {
    "max_even": (2, 2, 0, 2, 3, 7, 6),
    "max_padded": (3, 2, 1, 1, 2, 7, 8),
    "avg_even": (2, 2, 0, 2, 3, 7, 6),
    "avg_padded": (3, 2, 1, 1, 2, 7, 8),
    "avg_global": (0, 0, 0, 2, 3, 5, 4),
}


def values(seed, *shape):
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    v = (i * 37 + i * i % 61 + seed * 101) % 201 - 100
    return (v.double() / 100).reshape(shape).requires_grad_()


def coarse(seed, *shape):
    """Few different values, so that windows hold equal ones."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    v = (i * 3 + i * i % 7 + seed) % 5 - 2
    return (v.double() / 2).reshape(shape).requires_grad_()


stored = {}


def store(name, out, **leaves):
    gradient = values(4, *out.shape).detach()
    gradients = torch.autograd.grad(out, list(leaves.values()), gradient)
    stored[f"{name}.out"] = out
    for leaf, g in zip(leaves, gradients):
        stored[f"{name}.{leaf}"] = g


for name, (i, o, k, s, p, g, has_bias, n, h, w) in CONVOLUTIONS.items():
    leaves = {"input": values(1, n, i, h, w), "weight": values(2, o, i // g, k, k)}
    if has_bias:
        leaves["bias"] = values(3, o)
    out = F.conv2d(leaves["input"], leaves["weight"], leaves.get("bias"), s, p, 1, g)
    store(name, out, **leaves)

for name, (k, s, p, n, c, h, w) in POOLS.items():
    x = coarse(1, n, c, h, w)
    if name.startswith("max"):
        out = F.max_pool2d(x, k, s, p)
    elif name == "avg_global":
        out = x.mean((2, 3))
    else:
        out = F.avg_pool2d(x, k, s, p)
    store(name, out, input=x)

# A block as in residual networks, in training mode.
x, weight = values(1, 3, 2, 6, 5), values(2, 4, 2, 3, 3)
mean, variance = torch.zeros(4).double(), torch.ones(4).double()
scale, shift = values(5, 4), values(6, 4)
out = F.conv2d(x, weight, None, 1, 1)
out = F.batch_norm(out, mean, variance, scale, shift, training=True, momentum=0.1, eps=1e-5)
out = F.avg_pool2d(F.relu(out), 2, 2).mean((2, 3))
store("block", out, input=x, weight=weight, scale=scale, shift=shift)
stored |= {"block.running_mean": mean, "block.running_variance": variance}

stored = {name: t.detach().float().contiguous() for name, t in stored.items()}
save_file(stored, pathlib.Path(__file__).with_suffix(".safetensors"))
