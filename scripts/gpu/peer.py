"""G.pt in PyTorch, to measure lopt against; scripts/gpu/speed.py calls it.

    python3 peer.py measure DESCRIPTION WHAT BATCH DEVICE MODE SECONDS
    python3 peer.py matrix DEVICE SECONDS

DESCRIPTION is what `gpu_speed describe` printed, WHAT is `train_step` or `update_ddpm_1000` and
the like. MODE is how PyTorch runs it: `eager` or `compile`, or `graph` (compiled with
"reduce-overhead", which makes CUDA graphs), with `-tf32`, `-bf16` (autocast) or `-f32` after it.
`matrix` measures the rate of large matrix products. Each prints one line of JSON.

Written as one would write it with PyTorch's best: fused attention
(scaled_dot_product_attention), keys, queries and values in one product, fused AdamW, _foreach for
the moving average. Weights are random: they do not change how long a step takes.

Shape letters: N batch, P parameters of the network that is optimised, T tokens, D width.
"""

import json
import math
import statistics
import sys
import time
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F

FEWEST = 3  # fewest stretches in a median
STRETCH = 0.5  # shortest stretch that is timed at once, in seconds
MATRIX = 8192  # side of the matrices that the rate is measured with


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):  # [N, T, D]
        n, t, d = x.shape
        qkv = self.qkv(self.ln1(x)).view(n, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [N, H, T, D / H] each
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).reshape(n, t, d))
        return x + self.contract(F.gelu(self.expand(self.ln2(x))))


class Transformer(nn.Module):
    """Tokens with an encoder each; the scalars are the last of them."""

    def __init__(self, about):
        super().__init__()
        self.inputs, self.outputs = about["inputs"], about["outputs"]
        width = about["width"]
        self.encoders = nn.ModuleList(nn.Linear(c, width, bias=False) for c in self.inputs)
        self.decoders = nn.ModuleList(nn.Linear(width, c, bias=False) for c in self.outputs)
        self.positions = nn.Parameter(torch.zeros(len(self.inputs), width))
        self.ln_in, self.ln_f = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, about["heads"]) for _ in range(about["blocks"]))
        self.register_buffer("frequencies", torch.tensor(about["frequencies"]))

    def forward(self, noised, start, scalars):  # [N, P], [N, P], [N, 4]
        phase = scalars[..., None] * self.frequencies
        embedded = torch.cat((phase.sin(), phase.cos(), scalars[..., None]), 2).flatten(1)
        row = torch.cat((noised, start, embedded), 1)
        parts = row.split(self.inputs, 1)
        encoded = torch.stack([f(part) for f, part in zip(self.encoders, parts)], 1)
        x = self.ln_in(encoded) + self.positions  # [N, T, D]
        for block in self.blocks:
            x = block(x)
        x = self.ln_f(x)
        decoded = [f(x[:, k]) for k, f in enumerate(self.decoders)]
        return torch.cat(decoded, 1) + start


class Work:
    def __init__(self, about, what, batch, device, mode):
        kind, precision = mode.split("-")
        if kind not in ("eager", "compile", "graph") or precision not in ("f32", "tf32", "bf16"):
            sys.exit(f"error: no mode `{mode}`")
        torch.manual_seed(0)
        torch.backends.cuda.matmul.allow_tf32 = precision != "f32"
        torch.backends.cudnn.allow_tf32 = precision != "f32"
        self.device, self.size, self.batch = torch.device(device), about["parameters"], batch
        self.autocast = precision == "bf16"
        with self.device:
            self.model = Transformer(about)
        count = sum(p.numel() for p in self.model.parameters())
        if count != about["model_parameters"]:
            sys.exit(f"error: {count} parameters, lopt's model has {about['model_parameters']}")
        options = {"mode": "reduce-overhead"} if kind == "graph" else {}
        self.graph = kind == "graph"
        self.call = self.model if kind == "eager" else torch.compile(self.model, **options)
        self.start, self.clean = self.normal(), self.normal()
        self.metrics = torch.tensor([[-1.8, 0.5, 2.3]], device=self.device).repeat(batch, 1)
        beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        self.alpha_bar = (1 - beta).cumprod(0)
        if what == "train_step":
            self.prepare_training(about["trainer"])
            self.run = self.train_step
        else:
            _, rule, steps = what.split("_")
            self.prepare_updates(rule, int(steps))
            self.run = self.update

    def normal(self):
        return torch.randn(self.batch, self.size, device=self.device)

    def predict(self, noised, timestep):  # [N, P], [N, 1]
        scalars = torch.cat((timestep, self.metrics), 1)
        if self.graph:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return self.call(noised, self.start, scalars)

    def prepare_training(self, trainer):
        self.trainer, self.parameters = trainer, list(self.model.parameters())
        decays = [p for p in self.parameters if p.dim() == 2 and p is not self.model.positions]
        chosen = {id(p) for p in decays}
        others = [p for p in self.parameters if id(p) not in chosen]
        self.optimizer = torch.optim.AdamW(
            [{"params": decays}, {"params": others, "weight_decay": 0.0}],
            lr=trainer["learning_rate"],
            weight_decay=trainer["weight_decay"],
            fused=True,
        )
        self.average = [p.detach().clone() for p in self.parameters]
        self.signal = self.alpha_bar.sqrt().float().to(self.device)
        self.deviation = (1 - self.alpha_bar).sqrt().float().to(self.device)

    def train_step(self):
        timestep = torch.randint(1000, (self.batch, 1), device=self.device)
        noised = self.signal[timestep] * self.clean + self.deviation[timestep] * self.normal()
        loss = F.mse_loss(self.predict(noised, timestep.float()).float(), self.clean)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.trainer["gradient_clip"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - self.trainer["ema_decay"])

    def prepare_updates(self, rule, steps):
        self.rule = rule
        if self.autocast:
            # What autocast would do to the weights at every step.
            for module in self.model.modules():
                if isinstance(module, nn.Linear):
                    module.to(torch.bfloat16)
        taken = torch.linspace(0, 999, steps, dtype=torch.float64).round().long().tolist()
        before = [-1] + taken[:-1]
        # Plain numbers, so that a step reads nothing back from the device.
        self.schedule = [
            (
                torch.full((self.batch, 1), float(t), device=self.device),
                self.alpha_bar[t].item(),
                1.0 if earlier < 0 else self.alpha_bar[earlier].item(),
            )
            for t, earlier in reversed(list(zip(taken, before)))
        ]

    @torch.inference_mode()
    def update(self):
        sample = self.normal()
        for timestep, now, then in self.schedule:
            predicted = self.predict(sample, timestep).float()
            if self.rule == "ddpm":
                beta = 1 - now / then
                clean = math.sqrt(then) * beta / (1 - now)
                kept = math.sqrt(now / then) * (1 - then) / (1 - now)
                sample = clean * predicted + kept * sample
                if then < 1:
                    sample = sample + math.sqrt(beta) * self.normal()
            elif then < 1:
                fresh = (sample - math.sqrt(now) * predicted) / math.sqrt(1 - now)
                sample = math.sqrt(then) * predicted + math.sqrt(1 - then) * fresh
            else:
                sample = predicted
        return sample


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def timed(work, device, repeats=1):
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(device)
    return (time.perf_counter() - begin) / repeats


def median_time(work, device, seconds):
    """Milliseconds: of the first time, of all stretches."""
    first = timed(work, device)
    timed(work, device)  # graphs are recorded at the second
    repeats = max(1, math.ceil(min(STRETCH, seconds / FEWEST) / timed(work, device)))
    stretches, begin = [], time.perf_counter()
    while len(stretches) < FEWEST or time.perf_counter() - begin < seconds:
        stretches.append(1e3 * timed(work, device, repeats))
    return 1e3 * first, stretches


def measure(description, what, batch, device, mode, seconds):
    with open(description) as file:
        about = json.load(file)
    work = Work(about, what, batch, device, mode)
    first, stretches = median_time(work.run, device, seconds)
    report = {"config": about["name"], "what": what, "batch": batch, "device": device}
    report |= {"mode": mode, "ms": statistics.median(stretches), "stretches_ms": stretches}
    report |= {"first_ms": first, "torch": torch.__version__}
    if device == "cuda":
        report["torch_reserved_bytes"] = torch.cuda.max_memory_reserved()
    return report


def matrix(device, seconds):
    """Rates in TFLOP/s, of random values: zeros would be faster."""
    side = MATRIX if device == "cuda" else 512
    rates = {}
    for name, dtype, tf32 in (("bf16", torch.bfloat16, False), ("tf32", torch.float32, True)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        _, stretches = median_time(partial(torch.matmul, a, b), device, seconds)
        rates[name] = 2 * side**3 / statistics.median(stretches) / 1e9
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {"side": side, "tflops": rates, "card": name, "torch": torch.__version__}


def main():
    arguments = sys.argv[1:]
    if len(arguments) == 7 and arguments[0] == "measure":
        description, what, batch, device, mode, seconds = arguments[1:]
        report = measure(description, what, int(batch), device, mode, float(seconds))
    elif len(arguments) == 3 and arguments[0] == "matrix":
        report = matrix(arguments[1], float(arguments[2]))
    else:
        sys.exit(__doc__)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
