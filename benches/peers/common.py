"""What all peers share: a job comes in as JSON on standard input, what was measured goes out as one line of JSON (`../step/job.rs`, `../gpu/job.rs`).

A job's `device` is `cpu` where it says nothing. On a GPU the clock waits for it, and memory is the most that torch's tensors held at once.
"""
import json
import resource
import sys
import time
from pathlib import Path

import torch
import transformers

PAD_ID, IGNORED = 2, -100


def read_job() -> dict:
    """The job, with torch set up for it."""
    job = json.load(sys.stdin)
    if "threads" in job:
        torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    return job


def device_of(job: dict) -> torch.device:
    return torch.device(job.get("device", "cpu"))


def autocast(job: dict):
    """bf16 means autocast, f32 weights and matrix products in bf16, unless the weights themselves are bf16."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=job["dtype"] == "bf16" and not has_bf16_weights(job))


def has_bf16_weights(job: dict) -> bool:
    return job.get("weights") == "bf16"


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_rss_bytes() -> int:
    """The kernel's high-water mark of this process; Linux counts it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def rss_bytes() -> int:
    """What this process holds now."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return 1024 * int(line.split()[1])


class Clock:
    """Wall and CPU seconds of counted steps; of a GPU's steps once it has done them."""

    def __init__(self, device=torch.device("cpu")):
        self.seconds, self.cpu, self.device = [], [], device

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def start(self):
        self.wait()
        self.started, self.cpu_started = time.perf_counter(), cpu_seconds()

    def stop(self):
        self.wait()
        self.seconds.append(time.perf_counter() - self.started)
        self.cpu.append(cpu_seconds() - self.cpu_started)

    def measure(self, job: dict, steps: list):
        """Calls the first step for the warm-up, then every step of every pass."""
        for _ in range(job["warm_up"]):
            steps[0]()
        for step in job["passes"] * steps:
            self.start()
            step()
            self.stop()

    def report(self, **notes):
        if self.device.type == "cuda":
            notes |= dict(peak_bytes=torch.cuda.max_memory_allocated(self.device), reserved_bytes=torch.cuda.max_memory_reserved(self.device))
        print(json.dumps(dict(
            step_seconds=self.seconds, step_cpu_seconds=self.cpu, peak_rss_bytes=peak_rss_bytes(), torch=torch.__version__,
            transformers=transformers.__version__, **notes,
        )))
