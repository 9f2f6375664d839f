"""Records training runs of the task `digits` with a plain PyTorch loop; see recording.sh.

    python benches/peers/recording.py LOOP RUNS THREADS [FIRST]

LOOP says where batches come from, and who works:

- loader: a DataLoader, as in PyTorch's tutorials;
- tensor: rows of the training tensor, picked by one index for each batch;
- processes: as tensor, in THREADS processes of one thread each.

The same images in the same splits as lopt, the same network, optimizer, schedule, batch size,
steps and initialisation (from another generator), the same checkpoints with loss and error on
all splits, one file for each run. Prints one line of JSON: wall-clock and CPU seconds without
the start of the interpreter and a first run, in which PyTorch imports more of itself, and means
over the runs of the last test loss and error.
"""

import gzip
import json
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

DATA = Path(__file__).resolve().parents[2] / "data" / "digits.csv.gz"
SIZES = {"train": 1197, "validation": 300, "test": 300}
SPLIT_SEED = 1
# What `lopt record digits` does unless told otherwise.
BATCH, STEPS, SAVES = 256, 400, 50
RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-3


class ChaCha8:
    """The generator that splits lopt's images: ChaCha with 8 rounds, seeded as rand_core 0.6."""

    def __init__(self, seed):
        self.key, self.block, self.words = [], 0, []
        for _ in range(8):
            seed = (seed * 6364136223846793005 + 11634580027462260723) % 2**64
            word, turn = ((seed >> 18 ^ seed) >> 27) % 2**32, seed >> 59
            self.key.append((word >> turn | word << (32 - turn)) % 2**32)

    def word(self):
        if not self.words:
            constants = np.frombuffer(b"expand 32-byte k", "<u4").tolist()
            start = constants + self.key + [self.block % 2**32, self.block >> 32, 0, 0]
            x = list(start)

            def quarter(a, b, c, d):
                for p, q, r, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                    x[p] = (x[p] + x[q]) % 2**32
                    mixed = x[r] ^ x[p]
                    x[r] = (mixed << turn | mixed >> (32 - turn)) % 2**32

            for _ in range(4):
                for i in range(4):
                    quarter(i, 4 + i, 8 + i, 12 + i)
                for i in range(4):
                    quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
            self.words = [(a + b) % 2**32 for a, b in zip(x, start)][::-1]
            self.block += 1
        return self.words.pop()

    def shuffle(self, items):
        """As `SliceRandom::shuffle` of rand 0.8."""
        for i in range(len(items) - 1, 0, -1):
            bound = i + 1
            zone = (bound << (32 - bound.bit_length())) - 1
            while True:
                high, low = divmod(self.word() * bound, 2**32)
                if low <= zone:
                    break
            items[i], items[high] = items[high], items[i]


def load():
    """Standardised images and digits of each split, as src/tasks/digits.rs."""
    with gzip.open(DATA, "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    order = list(range(len(table)))
    ChaCha8(SPLIT_SEED).shuffle(order)
    pixels, digits = table[order, :64] / 16, table[order, 64].astype(np.int64)
    train = pixels[: SIZES["train"]]
    pixels = ((pixels - train.mean()) / train.std()).astype(np.float32)
    splits, first = {}, 0
    for name, size in SIZES.items():
        part = slice(first, first + size)
        splits[name] = torch.from_numpy(pixels[part]), torch.from_numpy(digits[part])
        first += size
    # The digits that a test of lopt expects there.
    if splits["test"][1][:10].tolist() != [7, 8, 1, 7, 4, 9, 0, 1, 6, 4]:
        sys.exit("recording.py splits the images in another way than lopt")
    return splits


def endless(loop, images, digits):
    """Batches, every image once before any comes again but for those that fill none."""
    if loop == "loader":
        data = TensorDataset(images, digits)
        loader = DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True)
        while True:
            yield from loader
    while True:
        order = torch.randperm(len(images))
        for batch in order.split(BATCH)[: len(images) // BATCH]:
            yield images[batch], digits[batch]


@torch.no_grad()
def score(model, splits):
    """Loss and error, in percent, on every split."""
    model.eval()
    scores = {}
    for name, (images, digits) in splits.items():
        logits = model(images)
        loss = F.cross_entropy(logits, digits).item()
        wrong = (logits.argmax(1) != digits).float().mean().item()
        scores[name] = loss, 100 * wrong
    model.train()
    return scores


def record(run, loop, splits, folder):
    """Trains one network and saves its checkpoints; the last scores."""
    torch.manual_seed(run)
    model = nn.Sequential(nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10))
    optimizer = torch.optim.SGD(
        model.parameters(), lr=RATE, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    # Dense at the start.
    at = {math.floor((i / (SAVES - 1)) ** 2 * STEPS + 0.5) for i in range(SAVES)}
    checkpoints = []

    def save(step):
        if step in at:
            state = {name: value.clone() for name, value in model.state_dict().items()}
            checkpoints.append({"step": step, "scores": score(model, splits), "model": state})

    batches = endless(loop, *splits["train"])
    for step in range(STEPS):
        save(step)
        images, digits = next(batches)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), digits)
        loss.backward()
        optimizer.step()
        schedule.step()
    save(STEPS)
    torch.save(checkpoints, folder / f"{run}.pt")
    return checkpoints[-1]["scores"]["test"]


def several(job):
    """A process's share of the runs."""
    loop, runs, folder = job
    torch.set_num_threads(1)
    splits = load()
    return [record(run, loop, splits, folder) for run in runs]


def main():
    if len(sys.argv) not in (4, 5) or sys.argv[1] not in ("loader", "tensor", "processes"):
        sys.exit(__doc__)
    loop, count, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    first = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    runs = range(first, first + count)
    with tempfile.TemporaryDirectory() as temporary:
        folder, other = Path(temporary, "runs"), Path(temporary, "warm-up")
        folder.mkdir()
        other.mkdir()
        cpu = None
        if loop == "processes":
            with torch.multiprocessing.get_context("spawn").Pool(threads) as pool:
                # One job for each process: none is done before the last has begun.
                pool.map(several, [("tensor", [i], other) for i in range(threads)], chunksize=1)
                jobs = [("tensor", runs[i::threads], folder) for i in range(threads)]
                wall = time.perf_counter()
                scores = sum(pool.map(several, jobs, chunksize=1), [])
                wall = time.perf_counter() - wall
        else:
            torch.set_num_threads(threads)
            record(0, loop, load(), other)
            wall, cpu = time.perf_counter(), time.process_time()
            splits = load()
            scores = [record(run, loop, splits, folder) for run in runs]
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if len(list(folder.iterdir())) != count:
            sys.exit("recording.py has not saved every run")
    loss, error = np.mean(scores, axis=0)
    report = {"runs": count, "wall": wall, "cpu": cpu, "test_loss": loss, "test_error": error}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
