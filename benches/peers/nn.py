"""The measurements of benches/nn.rs in PyTorch eager; see there.

    python benches/peers/nn.py THREADS
"""

import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

SECONDS = 0.25
threads = int(sys.argv[1])
torch.set_num_threads(threads)
clock = time.thread_time if threads == 1 else time.perf_counter


def measure(name, batch, run):
    for _ in range(3):
        run()
    times = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 5:
        times.append(run())
    for what, times in zip(("forward", "backward"), zip(*times)):
        print(f"{name}, batch {batch}\t{what}\t{sorted(times)[len(times) // 2] * 1e3:.4f}")


def layer(name, batch, side, conv, needs_gradient):
    x = torch.randn(batch, conv.in_channels, side, side, requires_grad=needs_gradient)

    def run():
        x.grad = None
        conv.zero_grad(set_to_none=True)
        start = clock()
        out = conv(x)
        forward = clock() - start
        loss = out.mean((2, 3)).sum()
        start = clock()
        loss.backward()
        return forward, clock() - start

    measure(name, batch, run)


def cnn(batch):
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )
    x, target = torch.randn(batch, 1, 28, 28), torch.arange(batch) % 10

    def run():
        model.zero_grad(set_to_none=True)
        start = clock()
        loss = F.cross_entropy(model(x), target)
        forward = clock() - start
        start = clock()
        loss.backward()
        return forward, clock() - start

    measure("CNN", batch, run)


for batch in (64, 128):
    # The first layer of a network: nothing needs the gradient of its input.
    layer("conv 28x28x1 s2 16", batch, 28, nn.Conv2d(1, 16, 3, 2), False)
    layer("conv 13x13x16 32", batch, 13, nn.Conv2d(16, 32, 3), True)
    cnn(batch)
