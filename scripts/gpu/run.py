#!/usr/bin/env python3
"""Runs what pack.sh made: checks lopt's GPU engine, measures it, trains the MNIST model on it.

    python3 run.py [PART ...] [--device cuda] [--quick] [--work FOLDER] [--minutes N]
                   [--limit SECONDS]

Needs Linux on x86-64, Python 3.9, an NVIDIA driver with CUDA's NVRTC and cuBLAS (a toolkit or
PyTorch's wheels), and PyTorch for the parts `speed-...`. No Rust and no network.

Parts, all of them in this order (`train` twice) unless some are named; each ends within 8 minutes
by itself:

  self-test    every kernel against the CPU engine, parity with the reference, dfdx's device
  speed-paper  the paper's MNIST configuration beside PyTorch
  speed-m      configuration M beside PyTorch
  record       trainings of MNIST networks, on all CPU cores
  train        a G.pt on them; named again, it goes on where it was
  eval         how well it does on unseen networks

Figures go to $OUT (default: figures) as PART.json, with summary.json and log.txt; recorded runs,
training state and weights to --work. A part that fails does not keep the next from running.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import programs

HERE = Path(__file__).resolve().parent
# Seconds of a part that are kept for its end.
RESERVE = 20
# The model of the paper with lopt's own tokens. LOPT_TRAIN replaces all of it.
TRAIN = (
    "--width 1536 --blocks 12 --heads 16 --batch 1024 --learning-rate 4e-4 --from-start 0.5 "
    "--by-metric 0.3 --behavior 0 --report-every 500"
)
# Runs are recorded until the time is up; this many are more than that.
RUNS = 40_000
# Steps that are taken to see how long one lasts.
PROBE = 60


class Failure(Exception):
    """A part that did not do what it is for."""


class Unfinished(Exception):
    """A part that goes on where it was when it is run again."""


class Part:
    def __init__(self, name, chosen, out):
        self.name, self.chosen, self.out = name, chosen, out
        self.work, self.quick, self.device = chosen.work, chosen.quick, chosen.device
        self.begin, self.figures = time.monotonic(), {}
        self.libraries = programs.libraries()

    def left(self):
        return self.chosen.limit - RESERVE - (time.monotonic() - self.begin)

    def log(self, text):
        with open(self.out / "log.txt", "a") as file:
            file.write(text.rstrip("\n") + "\n")

    def call(self, program, *arguments, seconds=None, stop=None, environment=None):
        """Runs a program of the folder, or one by its path; logs what it says."""
        path = HERE / "bin" / program
        own = path.exists()
        command = [path if own else program, *arguments]
        shown = " ".join(str(part) for part in [program, *arguments])
        limit = min(seconds or self.left(), self.left())
        if limit <= 1:
            raise Failure(f"no time is left for: {shown}")
        begin = time.monotonic()
        # Python finds its libraries by itself; another copy of CUDA's would confuse it.
        environment = {**(self.libraries if own else {}), **(environment or {})}
        done = programs.run(command, limit, stop, environment)
        self.log(f"$ {shown}\n{done.output}{done.errors}")
        self.log(f"# exit status {done.status} after {time.monotonic() - begin:.1f} s\n")
        return done

    def lopt(self, *arguments, **options):
        """Runs a command of lopt's; its report."""
        done = self.call("lopt", *arguments, "--json", "--quiet", **options)
        if done.status == 130:
            raise Unfinished(f"lopt {arguments[0]} was stopped; run this part again to go on")
        if done.status != 0:
            raise Failure(f"lopt {arguments[0]}: {done.reason()}")
        return json.loads(done.output)

    def on_device(self):
        # `bf16` is what training and sampling are measured in.
        return [] if self.device == "cpu" else ["--device", f"{self.device}:bf16"]


def self_test(part):
    problems = []
    if part.device != "cpu":
        part.figures["devices"] = part.lopt("devices")["devices"]
        done = part.call("gpu_speed", "self-test", "0")
        if done.status != 0:
            problems.append(f"kernels: {done.reason()}")
        else:
            found = part.figures["kernels"] = json.loads(done.output.splitlines()[-1])
            if found["failed"] or not found["checks"]:
                problems.append(f"kernels: {found['failed']} of {len(found['checks'])} are off")
    golden = {"LOPT_GOLDEN": str(HERE / "golden"), "LOPT_DEVICE": part.device}
    if (HERE / "fixtures").exists():
        golden["LOPT_FIXTURES"] = str(HERE / "fixtures")
    done = part.call("reference", environment=golden)
    lines = [line for line in done.output.splitlines() if line.startswith(("test ", "test result"))]
    part.figures["parity"] = {"status": done.status, "lines": lines}
    if done.status != 0:
        problems.append(f"parity: {lines[-1] if lines else done.reason()}")
    if (HERE / "bin" / "cuda_network").exists() and part.device != "cpu":
        prepare_dfdx()
        done = part.call("cuda_network")
        part.figures["dfdx"] = {"status": done.status, "lines": done.output.splitlines()}
        if done.status != 0:
            problems.append(f"dfdx's device: {done.reason()}")
    if problems:
        raise Failure("; ".join(problems))


def prepare_dfdx():
    """Puts the headers that dfdx compiles with where it looks for them."""
    paths = (HERE / "dfdx" / "paths").read_text().splitlines()
    for path, own in zip(paths, ("kernels", "include")):
        if not Path(path).exists():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).symlink_to(HERE / "dfdx" / own)


def speed(part, config):
    config = "quick" if part.quick else config
    # Kept with the work: a further call measures what there was no time for.
    out = part.work / f"{part.name}-{part.device}-{config}.json"
    program = HERE / "bin" / "gpu_speed"
    command = [HERE / "speed.py", program, config, part.device, int(part.left() - 10), out]
    done = part.call(sys.executable, *command)
    if out.exists():
        part.figures.update(json.loads(out.read_text()))
    if done.status != 0:
        raise Failure(done.reason())
    failed = sum("error" in row for row in part.figures["rows"])
    if failed:
        why = f"{failed} of {len(part.figures['rows'])} figures are missing, the table says why"
        raise Unfinished(f"{why}; run this part again to try them once more")


def record(part):
    store = part.work / "mnist"
    sizes = ["--runs", "24", "--steps", "60", "--saves", "6"] if part.quick else ["--runs", RUNS]
    options = ["mnist", "--data", HERE / "data" / "mnist", "--out", store, "--precision", "f16"]
    sizes += [] if part.quick else ["--saves", "30", "--spacing", "2"]
    begin = time.monotonic()
    # Stopped in time it leaves all finished runs.
    seconds = part.left() - programs.GRACE
    try:
        part.lopt("record", *options, *sizes, seconds=seconds, stop=signal.SIGINT)
    except Unfinished:
        pass
    part.figures["seconds"] = time.monotonic() - begin
    part.figures["cores"] = os.cpu_count()
    part.figures["store"] = part.lopt("inspect", store)


def train_options(part):
    if part.quick:
        return "--width 32 --blocks 2 --heads 2 --batch 16 --behavior 0 --held-out 4".split()
    return os.environ.get("LOPT_TRAIN", TRAIN).split()


def train(part):
    weights, plan = part.work / "mnist.safetensors", part.work / "train.json"
    options = [*train_options(part), *part.on_device()]
    fixed = ["train", "mnist", "--store", part.work / "mnist"]
    if plan.exists():
        known = json.loads(plan.read_text())
        if "report" in known:
            part.figures.update(known)
            return
    else:
        # How many steps fit into the minutes: they have to be known from the first on, for the
        # learning rate ends with them.
        probe = part.work / "probe.safetensors"
        sizes = ["--out", probe, "--steps", PROBE, "--restart"]
        found = part.lopt(*fixed, *options, *sizes)
        for file in part.work.glob("probe.safetensors*"):
            file.unlink()
        step = found["seconds"] / PROBE
        known = {"probe_step_seconds": step, "steps": max(1, int(60 * part.chosen.minutes / step))}
        known |= {"minutes": part.chosen.minutes, "seconds": 0.0, "calls": 0}
    begin = time.monotonic()
    sizes = ["--out", weights, "--steps", known["steps"]]
    try:
        seconds = part.left() - programs.GRACE
        known["report"] = part.lopt(*fixed, *options, *sizes, seconds=seconds, stop=signal.SIGINT)
    finally:
        known["seconds"] += time.monotonic() - begin
        known["calls"] += 1
        known["options"] = options
        plan.write_text(json.dumps(known))
        part.figures.update(known)


def evaluate(part):
    weights = part.work / "mnist.safetensors"
    if not weights.exists():
        raise Failure(f"there is no {weights}: the part `train` has to be finished first")
    options = ["mnist", "--data", HERE / "data" / "mnist", "--weights", weights, *part.on_device()]
    few = ["--networks", "4", "--prompts", "4"] if part.quick else []
    report = part.work / "eval.html"
    part.figures["eval"] = part.lopt("eval", *options, *few, "--out", report, seconds=200)
    few = ["--networks", "4", "--steps", "60"] if part.quick else ["--steps", "3000"]
    few += ["--baseline-networks", "2" if part.quick else "16"]
    report = part.work / "compare.html"
    part.figures["compare"] = part.lopt("compare", *options, *few, "--out", report)


PARTS = {
    "self-test": self_test,
    "speed-paper": lambda part: speed(part, "paper"),
    "speed-m": lambda part: speed(part, "m"),
    "record": record,
    "train": train,
    "eval": evaluate,
}


def card():
    """The card and its driver, as nvidia-smi names them."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
        return done.stdout.strip().splitlines() if done.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        return []


def arguments():
    parser = argparse.ArgumentParser(
        formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="default: cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that all runs")
    parser.add_argument("--work", type=Path, default=Path("work"), help="default: work")
    parser.add_argument("--limit", type=float, default=480, help="of a part; default: 480")
    parser.add_argument("--minutes", type=float, help="training time in all; default: 12")
    chosen = parser.parse_args()
    for name in chosen.parts:
        if name not in PARTS:
            parser.error(f"there is no part `{name}`, expected of: {', '.join(PARTS)}")
    # The training is longer than a part may be.
    chosen.parts = chosen.parts or [*list(PARTS)[:-1], "train", "eval"]
    chosen.minutes = chosen.minutes or (0.05 if chosen.quick else 12.0)
    chosen.work = chosen.work.resolve()
    return chosen


def main():
    chosen = arguments()
    out = Path(os.environ.get("OUT") or "figures").resolve()
    out.mkdir(parents=True, exist_ok=True)
    chosen.work.mkdir(parents=True, exist_ok=True)
    programs.end_with_this_process()
    summary = {
        "date": datetime.date.today().isoformat(),
        "built": json.loads((HERE / "about.json").read_text()),
        "cards": card(),
        "cores": os.cpu_count(),
        "device": chosen.device,
        "quick": chosen.quick,
        "parts": {},
    }
    for name in chosen.parts:
        print(f"== {name}", flush=True)
        part = Part(name, chosen, out)
        state, why = "done", None
        try:
            PARTS[name](part)
        except Unfinished as error:
            state, why = "unfinished", str(error)
        except Exception as error:  # a part that fails must not keep the next from running
            state, why = "failed", f"{error}" if isinstance(error, Failure) else repr(error)
        seconds = time.monotonic() - part.begin
        summary["parts"][name] = {"state": state, "why": why, "seconds": seconds}
        figures = {"part": name, "state": state, "why": why, "seconds_in_all": seconds}
        text = json.dumps({**figures, **part.figures}, indent=1)
        (out / f"{name}.json").write_text(text + "\n")
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        print(f"   {state} after {seconds:.0f} s{f': {why}' if why else ''}", flush=True)
    print(f"\nfigures: {out}")
    for name, part in summary["parts"].items():
        print(f"  {name:<12} {part['state']:<10} {part['seconds']:5.0f} s")
    sys.exit(any(part["state"] == "failed" for part in summary["parts"].values()))


if __name__ == "__main__":
    main()
