"""The transformer in PyTorch, eager or compiled. See src/lib.rs for the commands.

    python torch_peer.py [--compile] check FILE
    python torch_peer.py [--compile] measure FILE WHATS THREADS SECONDS

Shape letters: N batch, P parameters of the network that is optimised, T tokens, D width.
"""

import json
import math
import statistics
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import safe_open
from torch.nn.utils import parameters_to_vector, vector_to_parameters

STRETCH = 1e-3  # shortest stretch that is timed at once, in seconds
FEWEST = 3  # fewest stretches in a median


class Problem:
    """A file written by lopt: a model, its weights, a batch, and what comes out."""

    def __init__(self, path):
        self.file = safe_open(path, "pt")
        self.about = json.loads(self.file.metadata()["description"])

    def __getitem__(self, name):
        return self.file.get_tensor(name)

    def names(self):
        return self.file.keys()


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)  # keys, queries, values
        self.proj = nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):  # [N, T, D]
        n, t, d = x.shape
        qkv = self.qkv(self.ln1(x)).view(n, t, 3, self.heads, d // self.heads)
        k, q, v = qkv.permute(2, 0, 3, 1, 4)  # [N, H, T, D / H] each
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).reshape(n, t, d))
        return x + self.contract(F.gelu(self.expand(self.ln2(x))))


class Transformer(nn.Module):
    def __init__(self, problem):
        super().__init__()
        about = self.about = problem.about
        width = about["width"]
        self.encoders = nn.ModuleList(
            nn.Linear(c["values"], width, bias=c["bias"]) for c in about["inputs"]
        )
        self.conditioning = None
        if about["every_token"]:
            self.conditioning = nn.Linear(about["inputs"][-1]["values"], width)
        self.positions = nn.Parameter(torch.empty(max(about["positions"]) + 1, width))
        self.ln_in, self.ln_f = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, about["heads"]) for _ in range(about["blocks"]))
        self.decoders = nn.ModuleList(
            nn.Linear(width, c["values"], bias=False) for c in about["outputs"]
        )
        # Tables that change nothing are left out.
        table, outputs = problem["in.table"], problem["in.output_table"]
        identity = torch.equal(table, torch.arange(len(table)))
        self.register_buffer("table", None if identity else table)
        identity = torch.equal(outputs, torch.arange(len(outputs)))
        self.register_buffer("output_table", None if identity else outputs.argsort())
        rows = torch.tensor(about["positions"])
        identity = len(rows) == len(self.positions)
        self.register_buffer("position_rows", None if identity else rows)
        self.register_buffer("frequencies", problem["scalar_embedder.frequencies"])
        self.register_buffer("signal", problem["in.signal"])
        self.load(problem)

    def load(self, problem):
        """Takes the weights by the names of the G.pt code."""
        with torch.no_grad():
            self.positions.copy_(problem["decoder.pos_emb"][0])

            def take(layer, *names):
                for kind in ("weight", "bias"):
                    own = getattr(layer, kind)
                    if own is not None:
                        own.copy_(torch.cat([problem[f"decoder.{n}.{kind}"] for n in names]))

            for kind in ("ln_in", "ln_f"):
                take(getattr(self, kind), kind)
            for i, layer in enumerate(self.encoders):
                take(layer, f"input_parameter_projections.{i}.0")
            for i, layer in enumerate(self.decoders):
                take(layer, f"output_parameter_projections.{i}.0")
            if self.conditioning is not None:
                take(self.conditioning, "conditioning")
            for i, block in enumerate(self.blocks):
                name = f"blocks.{i}"
                take(block.ln1, f"{name}.ln1")
                take(block.ln2, f"{name}.ln2")
                take(block.qkv, *(f"{name}.attn.{part}" for part in ("key", "query", "value")))
                take(block.proj, f"{name}.attn.proj")
                take(block.expand, f"{name}.mlp.0")
                take(block.contract, f"{name}.mlp.2")

    def forward(self, noised, start, timestep, metrics):  # [N, P], [N, P], [N], [N, 3]
        about, n = self.about, len(noised)
        scaled = (timestep * about["timestep_scale"])[:, None], metrics * about["metric_scale"]
        scalars = torch.cat(scaled, 1)[..., None]  # [N, 4, 1]
        phase = scalars * self.frequencies
        embedded = torch.cat((phase.sin(), phase.cos(), scalars), 2).flatten(1)
        signal = self.signal[timestep.long()][:, None]
        row = torch.cat((noised * signal, start, embedded), 1)
        if self.table is not None:
            row = row.index_select(1, self.table)
        sizes = [c["tokens"] * c["values"] for c in about["inputs"]]
        parts = row.split(sizes, 1)
        encoded = [
            encoder(part.reshape(n, c["tokens"], c["values"]))
            for encoder, part, c in zip(self.encoders, parts, about["inputs"])
        ]
        positions = self.positions
        if self.position_rows is not None:
            positions = positions[self.position_rows]
        x = self.ln_in(torch.cat(encoded, 1)) + positions  # [N, T, D]
        if self.conditioning is not None:
            x = x + self.conditioning(parts[-1])[:, None]
        for block in self.blocks:
            x = block(x)
        x = self.ln_f(x)
        sizes = [c["tokens"] for c in about["outputs"]]
        parts = x[:, : sum(sizes)].split(sizes, 1)
        decoded = [decoder(part).flatten(1) for decoder, part in zip(self.decoders, parts)]
        output = torch.cat(decoded, 1)
        if self.output_table is not None:
            output = output.index_select(1, self.output_table)
        return output + start


class Engine:
    def __init__(self, problem, what, compiled):
        about = self.about = problem.about
        self.what, self.training = what, about["training"]
        samples = about["batch"] if what in ("train_step", "forward") else 1
        self.model = Transformer(problem)
        metrics = [problem[f"in.{name}"] for name in ("delta", "target", "current")]
        self.inputs = [problem[f"in.{name}"][:samples] for name in ("noised", "start", "timestep")]
        self.inputs.append(torch.stack(metrics, 1)[:samples])
        self.wanted = problem["in.wanted"][:samples]
        self.call = torch.compile(self.model) if compiled else self.model
        if what == "train_step":
            parameters = list(self.model.parameters())
            decays = [p for p in parameters if p.dim() == 2 and p is not self.model.positions]
            chosen = {id(p) for p in decays}
            others = [p for p in parameters if id(p) not in chosen]
            # The quickest of its three implementations on a CPU.
            self.optimizer = torch.optim.AdamW(
                [{"params": decays}, {"params": others, "weight_decay": 0.0}],
                lr=self.training["learning_rate"],
                weight_decay=self.training["weight_decay"],
                fused=True,
            )
            self.parameters = parameters
            self.average = [p.detach().clone() for p in parameters]
        if what == "update":
            hidden, outputs = 10, 10
            inputs = (about["parameters"] - outputs - hidden * (outputs + 1)) // hidden
            self.network = nn.Sequential(
                nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
            )
            self.raw = self.inputs[1][0] / about["scale"]
            self.alpha_bar = problem["in.alpha_bar"].double()
            with torch.no_grad():
                vector_to_parameters(self.raw, self.network.parameters())

    @torch.inference_mode()
    def forward(self):
        return self.call(*self.inputs)

    def train_step(self):
        loss = F.mse_loss(self.call(*self.inputs), self.wanted)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.training["clip"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(
                self.average, self.parameters, 1 - self.training["average_decay"]
            )
        return loss.item()

    def use_average(self):
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)

    @torch.inference_mode()
    def update(self, noise=None):
        """One network by DDIM, from noise to the parameters of `self.network`."""
        start = parameters_to_vector(self.network.parameters())[None] * self.about["scale"]
        sample = torch.randn_like(start) if noise is None else noise[None]
        steps = self.about["sampler"]
        for t, after in zip(steps, steps[1:] + [None]):
            predicted = self.call(sample, start, torch.tensor([float(t)]), self.inputs[3])
            if after is None:
                sample = predicted
                break
            now, then = self.alpha_bar[t].item(), self.alpha_bar[after].item()
            fresh = (sample - math.sqrt(now) * predicted) / math.sqrt(1 - now)
            sample = math.sqrt(then) * predicted + math.sqrt(1 - then) * fresh
        vector_to_parameters(sample[0] / self.about["scale"], self.network.parameters())


def check(problem, compiled):
    def error(found, name):
        expected = problem[name]
        return ((found - expected).norm() / expected.norm()).item()

    engine = Engine(problem, "train_step", compiled)
    report = {"forward": error(engine.forward(), "out.forward")}
    losses = engine.training["losses"]
    report["losses"] = max(abs(engine.train_step() / expected - 1) for expected in losses)
    engine.use_average()
    report["trained"] = error(engine.forward(), "out.trained")
    if problem.about["sampler"]:
        engine = Engine(problem, "update", compiled)
        engine.update(problem["in.noise"])
        report["update"] = error(parameters_to_vector(engine.network.parameters()), "out.update")
    print(json.dumps(report))


def measure(problem, what, compiled, seconds):
    engine = Engine(problem, what, compiled)
    work = {"train_step": engine.train_step, "update": engine.update}.get(what, engine.forward)
    if compiled:
        work()  # the compiler's work is not counted
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak of the memory is now that of now
    except OSError:
        pass
    start = time.perf_counter()
    first = math.inf
    while math.isinf(first) or time.perf_counter() - start < seconds / 4:
        before = time.perf_counter()
        work()
        first = time.perf_counter() - before
    repeats = max(1, math.ceil(STRETCH / first))
    cpu, wall = [], []
    start = time.perf_counter()
    while len(cpu) < FEWEST or time.perf_counter() - start < seconds:
        before = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            work()
        after = time.perf_counter(), time.process_time()
        wall.append((after[0] - before[0]) / repeats * 1e3)
        cpu.append((after[1] - before[1]) / repeats * 1e3)
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
    print(
        json.dumps(
            {
                "what": what,
                "cpu_ms": statistics.median(cpu),
                "wall_ms": statistics.median(wall),
                "best_cpu_ms": min(cpu),
                "peak_bytes": peak * 1024,
            }
        ),
        flush=True,
    )


def main():
    arguments = sys.argv[1:]
    compiled = "--compile" in arguments
    arguments = [argument for argument in arguments if argument != "--compile"]
    if len(arguments) == 2 and arguments[0] == "check":
        torch.set_num_threads(1)
        check(Problem(arguments[1]), compiled)
    elif len(arguments) == 5 and arguments[0] == "measure":
        torch.set_num_threads(int(arguments[3]))
        for what in arguments[2].split(","):
            measure(Problem(arguments[1]), what, compiled, float(arguments[4]))
    else:
        sys.exit(__doc__)


main()
