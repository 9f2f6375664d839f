"""lopt beside PyTorch on one machine, by turns; scripts/gpu/run.sh calls it.

    python3 speed.py GPU_SPEED CONFIGURATION DEVICE LIMIT OUT.json

GPU_SPEED is the program of that name, CONFIGURATION one that it knows, LIMIT the seconds that all
of it may take. OUT.json is written again after every figure, the most important ones first. What
was measured stays where the time runs out, and is not measured again if OUT.json is there already.

Operations are counted alike for both: those that are needed. After the last block only output
tokens are, which lopt makes use of and PyTorch, written plainly, does not. Memory is what
nvidia-smi shows for the card while a program runs, less what it showed before.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import programs

PEER = Path(__file__).resolve().parent / "peer.py"
# In turn: what, batch, then who and how. The bars of the project come first.
UPDATES = ("update_ddim_20", "update_ddpm_1000")
CARD = [
    *(("train_step", 1024, *job) for job in (("lopt", "bf16"), ("torch", "compile-bf16"))),
    *((what, 1, *job) for what in UPDATES for job in (("lopt", "bf16"), ("torch", "eager-bf16"))),
    ("train_step", 1024, "torch", "eager-bf16"),
    *((what, 1, "torch", "compile-bf16") for what in UPDATES),
    *((what, 1, "torch", "graph-bf16") for what in UPDATES),
    *(("train_step", 1024, *job) for job in (("lopt", "tf32"), ("torch", "eager-tf32"))),
    *((what, 1, *job) for what in UPDATES for job in (("lopt", "tf32"), ("torch", "eager-tf32"))),
    ("train_step", 1024, "torch", "compile-tf32"),
    *((what, 1, "torch", "compile-tf32") for what in UPDATES),
    *(("update_ddim_20", 1024, *job) for job in (("lopt", "bf16"), ("torch", "compile-bf16"))),
    *(("update_ddim_20", 64, *job) for job in (("lopt", "bf16"), ("torch", "compile-bf16"))),
]
# What can be run in seconds on a CPU, to see that the chain works.
QUICK = [
    (what, batch, *job)
    for what, batch in (("train_step", 4), ("update_ddim_4", 1), ("update_ddpm_10", 1))
    for job in (("lopt", "f32"), ("torch", "eager-f32"), ("torch", "eager-bf16"))
]


class Memory:
    """The most memory of the card that was in use, in bytes; none where there is no nvidia-smi."""

    def __init__(self, device):
        self.most = self.now = None
        if device != "cuda":
            return
        query = ["nvidia-smi", "-i", "0", "--query-gpu=memory.used"]
        query += ["--format=csv,noheader,nounits", "-lms", "100"]
        try:
            self.process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
        except OSError:
            return
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            if line.strip().isdigit():
                self.now = int(line) << 20
                self.most = max(self.most or 0, self.now)

    def start(self):
        time.sleep(0.3 if self.now is not None else 0)
        self.before = self.most = self.now

    def peak(self):
        return None if self.most is None else self.most - self.before


def operations(about, what, batch):
    """Floating point operations: nothing needs the gradient of the input."""
    width, blocks = about["width"], about["blocks"]
    tokens, decoded = len(about["inputs"]), len(about["outputs"])
    encoders, decoders = sum(about["inputs"]) * width, sum(about["outputs"]) * width
    asking = tokens * (blocks - 1) + decoded  # tokens that are asked for, over all blocks
    rest = (blocks * tokens * 3 + asking * 9) * width**2 + decoders + 2 * asking * tokens * width
    if what == "train_step":
        return batch * 2 * (2 * encoders + 3 * rest)
    return batch * int(what.rsplit("_", 1)[1]) * 2 * (encoders + rest)


def job(row):
    return tuple(row[key] for key in ("engine", "what", "batch", "how"))


def call(command, seconds):
    """What a program prints, as JSON; or an error, in words."""
    # PyTorch finds its libraries by itself.
    own = {} if command[0] == sys.executable else programs.libraries()
    done = programs.run(command, seconds, environment=own)
    if done.status == 0 and done.output.strip():
        return json.loads(done.output.splitlines()[-1])
    return {"error": done.reason()}


def main(program, config, device, limit, out):
    end = time.monotonic() + limit
    quick = config == "quick"
    seconds = 0.5 if quick else 4.0
    about = call([program, "describe", config], 60)
    if "error" in about:
        sys.exit(f"error: {program}: {about['error']}")
    about = {**about, "tokens": len(about["inputs"])}
    report = {"about": {**about, "frequencies": len(about["frequencies"])}, "device": device}
    report["rows"] = rows = []
    earlier = json.loads(out.read_text())["rows"] if out.exists() else []
    known = {job(row): row for row in earlier if "ms" in row}
    memory = Memory(device)

    def write():
        out.write_text(json.dumps(report, indent=1) + "\n")

    with tempfile.NamedTemporaryFile("w", suffix=".json") as description:
        json.dump(about, description)
        description.flush()
        peer = [sys.executable, str(PEER)]
        report["matrix"] = call([*peer, "matrix", device, str(seconds)], 120)
        write()
        for what, batch, engine, how in QUICK if quick else CARD:
            row = {"engine": engine, "what": what, "batch": batch, "how": how}
            if job(row) in known:
                rows.append(known[job(row)])
                continue
            left = end - time.monotonic()
            if left < 5:
                found = {"error": f"no time was left of {limit:.0f} s"}
            else:
                own = [device] if device == "cpu" else [f"{device}:{how}"]
                command = [program, "measure", config, what, str(batch), *own]
                if engine == "torch":
                    measured = [description.name, what, str(batch), device, how]
                    command = [*peer, "measure", *measured]
                memory.start()
                found = call([*command, str(seconds)], min(left, 200))
            row |= {k: v for k, v in found.items() if k not in ("config", "mode")}
            if "ms" in found:
                row["tflops"] = operations(about, what, batch) / found["ms"] / 1e9
                peak = report["matrix"].get("tflops", {}).get(how.rsplit("-")[-1])
                row["matrix_share"] = row["tflops"] / peak if peak else None
                row["peak_bytes"] = memory.peak()
            rows.append(row)
            shown = found.get("error") or f"{found['ms']:.3f} ms"
            print(f"{config} {what} batch {batch}: {engine} {how}: {shown}", flush=True)
            write()
    write()
    if not any(row["engine"] == "lopt" and "ms" in row for row in rows):
        sys.exit("error: lopt could not be measured")


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    programs.end_with_this_process()
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), Path(sys.argv[5]))
