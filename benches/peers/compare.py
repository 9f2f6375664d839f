"""Runs all engines by turns and tells how fast they are; see run.sh.

Shape letters: N batch, T tokens, D width.
"""

import argparse
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "RESULTS.md"
START, END = "<!-- benches/peers/run.sh: start -->", "<!-- benches/peers/run.sh: end -->"

CONFIGS = {
    "S": "width 128, 4 blocks, 4 heads, 20 tokens of 100 values, batch 64",
    "M": "width 384, 6 blocks, 6 heads, 32 tokens of 384 values, batch 32",
    "L": "width 1536, 12 blocks, 16 heads, MNIST 784-10-10 in 26 tokens, batch 8",
    "U": "the bundled digits model: width 128, 6 blocks, 4 heads, 12 tokens, batch 64",
}
WHATS = ["train_step", "forward", "forward_batch_1", "update"]
ENGINES = ["lopt", "torch", "torch_compile", "candle", "dfdx"]
NAMES = {"torch": "PyTorch eager", "torch_compile": "torch.compile"}
# Largest relative errors against lopt: of the output, of the losses of the first
# training steps, of the output of the averaged weights after them, of an update.
TOLERANCES = {"forward": 1e-4, "losses": 1e-4, "trained": 2e-3, "update": 1e-4}
TIMEOUT = 3600


def arguments():
    parser = argparse.ArgumentParser(prog="run.sh", description="Compares engines of G.pt.")
    parser.add_argument("--json", action="store_true", help="print one array of rows")
    parser.add_argument("--quick", action="store_true", help="S alone, one round, writes nothing")
    parser.add_argument("--configs", default="S,M,L,U", help="default: %(default)s")
    parser.add_argument("--engines", default=",".join(ENGINES), help="default: %(default)s")
    parser.add_argument("--threads", default="1,2", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s; L has fewer")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure of a round")
    parser.add_argument("--bin", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, required=True, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.configs, chosen.rounds, chosen.seconds = "S", 1, 0.5
    chosen.configs = chosen.configs.split(",")
    asked = chosen.engines.split(",")
    for name, known in [*((c, CONFIGS) for c in chosen.configs), *((e, ENGINES) for e in asked)]:
        if name not in known:
            parser.error(f"there is no {name!r}, expected of: {', '.join(known)}")
    chosen.engines = [engine for engine in ENGINES if engine in asked]
    chosen.threads = [int(count) for count in chosen.threads.split(",")]
    return chosen


def say(*words):
    print(*words, file=sys.stderr, flush=True)


class Bench:
    def __init__(self, chosen):
        self.chosen = chosen
        self.failures = {}  # (engine, config) -> why

    def file(self, config):
        return self.chosen.work / f"{config}.safetensors"

    def command(self, engine):
        if engine.startswith("torch"):
            flags = ["--compile"] if engine == "torch_compile" else []
            return [sys.executable, str(HERE / "torch_peer.py"), *flags]
        return [str(self.chosen.bin / f"{engine}_peer")]

    def call(self, command, threads=1):
        """The lines that a command prints, as JSON."""
        count = str(threads)
        own = {
            "OMP_NUM_THREADS": count,
            "MKL_NUM_THREADS": count,
            "RAYON_NUM_THREADS": count,
            "TORCHINDUCTOR_CACHE_DIR": str(self.chosen.work / f"inductor-{count}"),
            "RUST_BACKTRACE": "0",
        }
        done = subprocess.run(
            command, env={**os.environ, **own}, capture_output=True, text=True, timeout=TIMEOUT
        )
        if done.returncode != 0:
            told = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            last = next((line for line in reversed(told) if "rror" in line), "")
            signal = "killed, out of memory?" if done.returncode == -9 else ""
            raise RuntimeError(last or signal or f"exit status {done.returncode}")
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def prepare(self, config):
        command = [str(self.chosen.bin / "lopt_peer"), "prepare", config, str(self.file(config))]
        self.call(command)

    def check(self, engine, config):
        """Relative errors of an engine; a failure if they are too large."""
        try:
            [report] = self.call([*self.command(engine), "check", str(self.file(config))])
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            self.failures[engine, config] = f"check: {error}"
            return None
        for what, error in report.items():
            if not error <= TOLERANCES[what]:
                self.failures[engine, config] = f"wrong result: error of {what} {error:.1e}"
        return report

    def measure(self, engine, config, threads):
        whats = [what for what in WHATS if what != "update" or config == "U"]
        own = ["measure", str(self.file(config)), ",".join(whats), str(threads)]
        try:
            return self.call(
                [*self.command(engine), *own, str(self.chosen.seconds)], threads
            )
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            self.failures[engine, config] = str(error)
            return []

    def peak(self):
        [report] = self.call([str(self.chosen.bin / "gemm_peak"), "1"])
        return report["best_gflops"]


def describe(path):
    """The description in a problem file."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(header["__metadata__"]["description"])


def operations(about, what):
    """Floating point operations that are needed: after the last block only output tokens
    are read, and nothing needs the gradient of the input."""
    width, blocks, tokens = about["width"], about["blocks"], len(about["positions"])
    decoded = sum(c["tokens"] for c in about["outputs"])
    encoders = sum(c["tokens"] * c["values"] for c in about["inputs"]) * width
    if about["every_token"]:
        encoders += about["inputs"][-1]["values"] * width
    decoders = sum(c["tokens"] * c["values"] for c in about["outputs"]) * width
    asking = tokens * (blocks - 1) + decoded  # tokens that are asked for, over all blocks
    linear = (blocks * tokens * 3 + asking * 9) * width**2 + decoders
    attention = 2 * asking * tokens * width
    forward = 2 * (encoders + linear + attention)
    return {
        "train_step": about["batch"] * 2 * (2 * encoders + 3 * linear + 3 * attention),
        "forward": about["batch"] * forward,
        "forward_batch_1": forward,
        "update": len(about["sampler"]) * forward,
    }[what]


def processor():
    with open("/proc/cpuinfo") as file:
        text = file.read()
    name = re.search(r"model name\s*:\s*(.*)", text)
    flags = re.search(r"flags\s*:\s*(.*)", text)
    best = next((f for f in ("avx512f", "avx2") if flags and f in flags[1].split()), "")
    family = re.search(r"cpu family\s*:\s*(\d+)", text)
    model = re.search(r"model\s*:\s*(\d+)", text)
    which = f"family {family[1]}, model {model[1]}" if family and model else ""
    known = ", ".join(part for part in (which, best) if part)
    return f"{name[1] if name else os.uname().machine} ({known}), {os.cpu_count()} cores"


def versions():
    import torch

    lock = (HERE / "Cargo.lock").read_text()
    found = dict(re.findall(r'name = "(candle-core|dfdx)"\nversion = "([^"]+)"', lock))
    return f"PyTorch {torch.__version__}, candle {found['candle-core']}, dfdx {found['dfdx']}"


def rows(bench, samples, peak):
    """The rows of the JSON output: medians over rounds."""
    made = []
    for config in bench.chosen.configs:
        about = describe(bench.file(config))
        whats = [what for what in WHATS if what != "update" or config == "U"]
        for what in whats:
            for threads in bench.chosen.threads:
                clock = "cpu_ms" if threads == 1 else "wall_ms"
                eager = samples.get(("torch", config, what, threads), {})
                for engine in bench.chosen.engines:
                    own = samples.get((engine, config, what, threads), {})
                    row = {"engine": engine, "config": config, "what": what, "threads": threads}
                    failure = bench.failures.get((engine, config))
                    if failure or not own:
                        nothing = ("cpu_ms", "wall_ms", "ratio_to_torch", "peak_share")
                        row.update(dict.fromkeys(nothing), note=failure or "not measured")
                        made.append(row)
                        continue
                    for key in ("cpu_ms", "wall_ms"):
                        row[key] = statistics.median(s[key] for s in own.values())
                    # Within a round engines saw the same machine.
                    shared = [own[r][clock] / eager[r][clock] for r in own if r in eager]
                    row["ratio_to_torch"] = statistics.median(shared) if shared else None
                    gflops = operations(about, what) / row[clock] / 1e6
                    row["peak_share"] = gflops / (peak * threads)
                    row["gflops"] = gflops
                    row["peak_bytes"] = max(s["peak_bytes"] for s in own.values())
                    made.append(row)
    return made


def table(header, lines):
    ruler = "|---" * len(header) + "|"
    return "\n".join(f"| {' | '.join(line)} |" for line in [header]) + f"\n{ruler}\n" + "\n".join(
        f"| {' | '.join(line)} |" for line in lines
    )


def report(bench, made, checks, peak, load):
    """The section of RESULTS.md."""
    chosen = bench.chosen
    names = [NAMES.get(engine, engine) for engine in chosen.engines]
    fewer = f" ({rounds_of(chosen, 'L')} of L)" if "L" in chosen.configs else ""
    text = [
        f"{processor()}, load {load:.1f} at the start; {datetime.date.today()}; {versions()}. Made by "
        f"`benches/peers/run.sh`: rounds by turns: {chosen.rounds}{fewer}; medians, in milliseconds; "
        "in brackets the ratio to PyTorch eager in the same round (below 1: faster).",
        f"Peak of `gemm` 0.19 on one thread in the same run: {peak:.0f} GFLOP/s. Operations are counted "
        "alike for all engines, those that are needed: in the last block only output tokens are "
        "asked for, which lopt makes use of and the others, written plainly, do not.",
        "\n".join(f"- {config}: {CONFIGS[config]}" for config in chosen.configs),
    ]
    find = {(r["engine"], r["config"], r["what"], r["threads"]): r for r in made}
    for threads in chosen.threads:
        clock = "cpu_ms" if threads == 1 else "wall_ms"
        text.append(
            "One thread, CPU time of the process:"
            if threads == 1
            else f"{threads} threads, wall-clock time:"
        )
        lines = []
        for config in chosen.configs:
            for what in WHATS:
                if ("lopt", config, what, threads) not in find:
                    continue
                line = [config, what.replace("_", " ")]
                for engine in chosen.engines:
                    row = find[engine, config, what, threads]
                    if row[clock] is None:
                        line.append("failed")
                        continue
                    ratio = row["ratio_to_torch"]
                    ratio = f" ({ratio:.2f})" if ratio is not None else ""
                    line.append(f"{row[clock]:.3g}{ratio}")
                own = find["lopt", config, what, threads]
                if own["cpu_ms"] is not None:
                    share = f"{100 * own['peak_share']:.0f} %"
                    line += [f"{own['gflops']:.0f}", share]
                lines.append(line)
        text.append(table(["", "", *names, "lopt: GFLOP/s", "of the peak"], lines))
    lines = []
    for config in chosen.configs:
        for what in ("train_step", "forward_batch_1"):
            cells = [
                (find[engine, config, what, chosen.threads[0]].get("peak_bytes") or 0) / 1e6
                for engine in chosen.engines
            ]
            cells = [f"{cell:.0f}" if cell else "failed" for cell in cells]
            lines.append([config, what.replace("_", " "), *cells])
    text.append(f"Peak memory of the process, MB ({chosen.threads[0]} thread):")
    text.append(table(["", "", *names], lines))
    lines = []
    for config in chosen.configs:
        cells = []
        for engine in chosen.engines:
            found = checks.get((engine, config))
            cells.append("; ".join(f"{e:.0e}" for e in found.values()) if found else "failed")
        lines.append([config, *cells])
    text.append(
        "Checked first: relative error against what lopt made of the same weights and inputs (output; "
        "losses of the first training steps; output of the averaged weights after them; update):"
    )
    text.append(table(["", *names], lines))
    failures = bench.failures.items()
    text += [f"{NAMES.get(e, e)} on {config} failed: {why}." for (e, config), why in failures]
    return "\n\n".join(text)


def rewrite(section):
    """Puts the section between its marks, or at the end."""
    text = RESULTS.read_text()
    marked = f"{START}\n\n{section}\n\n{END}"
    if START in text:
        before, rest = text.split(START, 1)
        after = rest.split(END, 1)[1]
        RESULTS.write_text(before + marked + after)
    else:
        RESULTS.write_text(f"{text.rstrip()}\n\n## Engines\n\n{marked}\n")


def rounds_of(chosen, config):
    """L takes minutes for what takes the others seconds."""
    return max(1, chosen.rounds // 2) if config == "L" else chosen.rounds


def main():
    chosen = arguments()
    bench, checks, samples, peaks = Bench(chosen), {}, {}, []
    load = os.getloadavg()[0]
    for config in chosen.configs:
        say(f"{config}: writing weights and inputs")
        bench.prepare(config)
        for engine in chosen.engines:
            found = bench.check(engine, config)
            checks[engine, config] = found
            why = bench.failures.get((engine, config), "the same outputs")
            say(f"{config}: {engine}: {why} {found or ''}")
    for turn in range(chosen.rounds):
        peaks.append(bench.peak())
        say(f"round {turn + 1} of {chosen.rounds}: peak of gemm {peaks[-1]:.1f} GFLOP/s")
        for config in chosen.configs:
            if turn >= rounds_of(chosen, config):
                continue
            for threads in chosen.threads:
                for engine in chosen.engines:
                    if (engine, config) in bench.failures:
                        continue
                    for found in bench.measure(engine, config, threads):
                        key = engine, config, found["what"], threads
                        samples.setdefault(key, {})[turn] = found
                        clock = "cpu_ms" if threads == 1 else "wall_ms"
                        say(f"  {config} {engine} {found['what']} x{threads}: {found[clock]:.3f} ms")
    peak = statistics.median(peaks)
    made = rows(bench, samples, peak)
    section = report(bench, made, checks, peak, load)
    if not chosen.quick:
        rewrite(section)
    print(json.dumps(made, indent=1) if chosen.json else section)
    # An engine that is wrong, or lopt itself failing, is an error; a peer that cannot is a row.
    wrong = [why for why in bench.failures.values() if why.startswith("wrong")]
    sys.exit(1 if wrong or any(engine == "lopt" for engine, _ in bench.failures) else 0)


main()
