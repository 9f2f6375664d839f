"""Runs programs for a limited time, with all that they start; for run.py and speed.py."""

import glob
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

# Between asking a program to stop and killing it, in seconds: it saves its state meanwhile.
GRACE = 45
LIBRARIES = ["libcuda.so.1", "libnvrtc.so*", "libcublasLt.so*"]
running = set()


class Done(NamedTuple):
    status: int  # of exit; 124 where the time ran out
    output: str
    errors: str

    def reason(self):
        """Why it failed, in one line."""
        if self.status == 124:
            return "the time ran out"
        told = [line.strip() for line in self.errors.splitlines() if line.strip()]
        last = next((line for line in reversed(told) if "rror" in line), told[-1] if told else "")
        return f"exit status {self.status}: {last}"[:400]


def libraries():
    """What lopt has to be told to find CUDA's libraries: a toolkit's, the driver's, PyTorch's."""
    patterns = ["/usr/local/cuda/lib64", "/usr/local/cuda-*/lib64", "/usr/local/nvidia/lib64"]
    patterns += ["/usr/local/nvidia/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib64"]
    patterns += [f"{home}/lib64" for home in [os.environ.get("CUDA_HOME")] if home]
    packages = {path for path in sys.path if path.endswith(("site-packages", "dist-packages"))}
    patterns += [f"{Path(folder)}/nvidia/*/lib" for folder in sorted(packages)]
    found = [folder for pattern in patterns for folder in sorted(glob.glob(pattern))]
    found = [f for f in found if any(glob.glob(f"{f}/{library}") for library in LIBRARIES)]
    # What is set already comes first.
    folders = [os.environ.get("LD_LIBRARY_PATH", ""), *found]
    return {"LD_LIBRARY_PATH": ":".join(folder for folder in folders if folder)}


def kill(process, number):
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def run(command, seconds, stop=None, environment=None):
    """Runs a program for at most `seconds`. Then it is sent the signal `stop`, if one is given,
    and its own status counts; it is killed if it goes on, or if there is none."""
    # Files, not pipes: a pipe stays open as long as anything that the program started.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        except OSError as error:
            return Done(127, "", f"error: {error}")
        running.add(process)
        try:
            status = process.wait(max(1, seconds))
        except subprocess.TimeoutExpired:
            status = 124
            if stop is not None:
                kill(process, stop)
                try:
                    status = process.wait(GRACE)
                except subprocess.TimeoutExpired:
                    pass
        finally:
            kill(process, signal.SIGKILL)
            process.wait()
            running.discard(process)
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Done(status, *texts)


def stop_all(*_):
    for process in list(running):
        kill(process, signal.SIGKILL)
    sys.exit(143)


def end_with_this_process():
    """Leaves nothing running when this process is told to end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop_all)
