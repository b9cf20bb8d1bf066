"""Can the GPUs of this machine talk to each other? A real sum over all of them, in processes as in training."""

import json
import os
import signal
import subprocess
import sys
from typing import Literal

from caspi.config import Check
from caspi.ops.readiness.finding import Finding

SUM_OF_ALL = """
import json, os, sys, time
import torch
from torch import distributed

backend, num_bytes = sys.argv[1], int(sys.argv[2])
rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if backend == "nccl" else torch.device("cpu")
if backend == "nccl":
    torch.cuda.set_device(device)
distributed.init_process_group(backend)
values = torch.full((num_bytes // 4,), float(rank + 1), device=device)
distributed.all_reduce(values)
assert bool((values == world_size * (world_size + 1) / 2).all()), "the sum is wrong"
distributed.barrier()
start = time.perf_counter()
distributed.all_reduce(values)
float(values[0])
seconds = time.perf_counter() - start
if rank == 0:
    # Each process sends and receives 2 (n - 1) / n of the bytes (ring).
    bus = 2 * (world_size - 1) / world_size * num_bytes / seconds / 1e9
    print(json.dumps({"gb_per_second": bus}), flush=True)
distributed.destroy_process_group()
"""


def gpus_talk(check: Check, num_processes: int, backend: Literal["nccl", "gloo"] = "nccl") -> Finding:
    subject = f"{backend.upper()}, {num_processes} processes"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    command += ["--no-python", sys.executable, "-c", SUM_OF_ALL, backend, str(check.collective_mib << 20)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=check.collective_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        found = f"no sum within {check.collective_seconds:g} s"
        return Finding(subject, "fail", found, "NCCL_DEBUG=INFO caspi check; NCCL_P2P_DISABLE=1 if the cards cannot")
    if process.returncode:
        lines = [line for line in errors.splitlines() if "Error" in line] or [f"exit code {process.returncode}"]
        return Finding(subject, "fail", lines[0].strip(), "NCCL_DEBUG=INFO caspi check says more")
    speed = json.loads(output.splitlines()[-1])["gb_per_second"]
    return Finding(subject, "ok", f"sums arrive, {speed:.1f} GB/s")
