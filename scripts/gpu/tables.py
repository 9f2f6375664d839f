"""Tables for benches/RESULTS.md from what run.py measured: tables.py FOLDER [FOLDER ...]

Each FOLDER is an $OUT of run.py; of a part that is in several, the last counts. Prints Markdown.
What failed or was not measured is in the tables as such.
"""

import json
import sys
from pathlib import Path

WHATS = {
    "train_step": "training step",
    "update_ddim_20": "update, DDIM 20",
    "update_ddpm_1000": "update, DDPM 1000",
    "update_ddim_4": "update, DDIM 4",
    "update_ddpm_10": "update, DDPM 10",
}


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines) + "\n"


def number(value, digits=3):
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def speed(part):
    if "about" not in part:
        return ""
    about, matrix = part["about"], part.get("matrix", {})
    rates = matrix.get("tflops", {})
    shown = ", ".join(f"{name} {number(rate)}" for name, rate in rates.items())
    text = (
        f"Configuration `{about['name']}`: width {about['width']}, {about['blocks']} blocks, "
        f"{about['heads']} heads, {about['tokens']} tokens, {about['model_parameters'] / 1e6:.1f} "
        f"million parameters. Measured matrix rate, side {matrix.get('side')}, random values, "
        f"TFLOP/s: {shown or matrix.get('error')}. PyTorch {matrix.get('torch')}.\n\n"
    )
    own = {}
    for row in part["rows"]:
        if row["engine"] == "lopt" and "ms" in row:
            own[row["what"], row["batch"], row["how"]] = row["ms"]
    rows = []
    for row in sorted(part["rows"], key=lambda row: (list(WHATS).index(row["what"]), row["batch"])):
        start = [WHATS[row["what"]], row["batch"], row["engine"], row["how"]]
        if "ms" not in row:
            rows.append([*start, row["error"], "", "", "", ""])
            continue
        precision = row["how"].rsplit("-")[-1]
        same = own.get((row["what"], row["batch"], precision))
        share, peak = row.get("matrix_share"), row.get("peak_bytes")
        rows.append(
            [
                *start,
                number(row["ms"]),
                f"{row['ms'] / same:.2f}" if same else "",
                number(row.get("tflops")),
                f"{100 * share:.0f} %" if share else "",
                f"{peak / 1e9:.1f}" if peak else "",
            ]
        )
    header = ["", "batch", "engine", "how", "ms", "times lopt's", "TFLOP/s", "of the rate", "GB"]
    return text + table(header, rows)


def self_test(part):
    text = ""
    checks = part.get("kernels", {}).get("checks", [])
    if checks:
        rows = []
        for check in checks:
            # JSON has no infinity and no NaN.
            error = "not finite" if check["error"] is None else f"{check['error']:.1e}"
            verdict = "" if check["passes"] else "**fails**"
            rows.append([check["name"], error, f"{check['tolerance']:.0e}", verdict])
        text += table(["against the CPU engine", "error", "tolerance", ""], rows) + "\n"
    if "parity" in part:
        lines = part["parity"]["lines"]
        text += f"Parity with the reference: {lines[-1] if lines else 'it did not run'}.\n"
    if "dfdx" in part:
        text += f"dfdx's own device: {'; '.join(part['dfdx']['lines'])}.\n"
    return text


def record(part):
    if "store" not in part:
        return ""
    store, seconds = part["store"], part["seconds"]
    runs = store.get("runs") or store.get("kept")
    return f"Recorded on {part['cores']} cores in {seconds:.0f} s: {runs} runs.\n"


def train(part):
    if "steps" not in part:
        return ""
    report = part.get("report", {})
    losses = ", ".join(
        f"{name} {number(report[key], 4)}"
        for key, name in (("loss", "loss"), ("held_out_loss", "held out"))
        if report.get(key) is not None
    )
    return (
        f"Trained for {part['steps']} steps in {part['seconds'] / 60:.1f} minutes and "
        f"{part['calls']} calls ({losses or 'not finished'}): `{' '.join(part['options'])}`.\n"
    )


def scores(name, entry):
    def value(key, unit=""):
        return f"{entry[key]:.3f} ± {entry[f'{key}_se']:.3f}{unit}" if key in entry else ""

    return [name, value("validation_loss"), value("test_loss"), value("test_error", " %")]


def evaluation(part):
    text = ""
    if "eval" in part:
        found = part["eval"]
        rows = [
            scores("random initialisation", found["random"]),
            scores(f"one update, prompt {found['one_step']['prompt']:.3f}", found["one_step"]),
        ]
        for count, entry in enumerate(found["recursive"]["after"][1:], 2):
            rows.append(scores(f"{count} updates in a row", entry))
        rows.append(scores(f"best of {found['best_of_k']['candidates']}", found["best_of_k"]))
        text += table(["", "validation loss", "test loss", "test error"], rows)
        aligned, count = found["prompt_alignment"], found["networks"]
        text += f"\nPrompt alignment {aligned:.3f}, {count} networks.\n\n"
    if "compare" in part:
        rows = []
        for entry in part["compare"]["baselines"]:
            steps = entry["equivalent_steps"]
            rows.append([*scores(entry["name"], entry), steps if steps is not None else "never"])
        header = ["at the end of training", "validation loss", "test loss", "test error"]
        text += table([*header, "steps to match one update"], rows)
    return text


SECTIONS = {
    "self-test": ("Self-test", self_test),
    "speed-paper": ("The paper's MNIST configuration beside PyTorch", speed),
    "speed-m": ("Configuration M beside PyTorch", speed),
    "record": ("Recording", record),
    "train": ("Training", train),
    "eval": ("On unseen networks", evaluation),
}


def main(folders):
    parts, summaries = {}, []
    for folder in folders:
        summaries.append(json.loads((folder / "summary.json").read_text()))
        for name in SECTIONS:
            file = folder / f"{name}.json"
            if file.exists():
                parts[name] = json.loads(file.read_text())
    for line in dict.fromkeys(
        f"{'; '.join(s['cards']) or 'no card'}; {s['cores']} CPU cores; {s['date']}; lopt "
        f"{s['built']['lopt']}{'; QUICK: tiny sizes, no measurement' if s['quick'] else ''}"
        for s in summaries
    ):
        print(f"{line}\n")
    for name, (title, make) in SECTIONS.items():
        print(f"### {title}\n")
        if name not in parts:
            print("Not run.\n")
            continue
        part = parts[name]
        if part["state"] != "done":
            print(f"{part['state'].capitalize()}: {part['why']}\n")
        print(make(part))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([Path(argument) for argument in sys.argv[1:]])
