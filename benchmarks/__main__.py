"""All CPU benchmarks, C1 to C6: `make bench`. Each writes a JSON file; this one also the page that shows them.

C7 (aligner throughput) takes 4 GB and minutes: `python -m benchmarks.audit_throughput`. C8 (exactness) is in the tests:
`tests/test_packed.py`.
"""

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import batching_policies, loader, saved_bytes, step_counts, step_speed, step_traffic
from benchmarks.measure import environment, write_result

PAGE = Path("docs/results/benchmarks.md")
CHAPTERS: dict[str, tuple[str, Path, Callable[[], dict[str, Any]]]] = {
    "C1": ("batching policies", batching_policies.RESULT, batching_policies.run),
    "C2, C3": ("operations, host waits, FLOPs", step_counts.RESULT, step_counts.run),
    "C4": ("bytes kept for the backward pass", saved_bytes.RESULT, saved_bytes.run),
    "C5": ("one optimizer step", step_speed.RESULT, step_speed.run),
    "C6": ("data path", loader.RESULT, loader.run),
    "constants": ("bytes moved and launches by layer", step_traffic.RESULT, step_traffic.run),
}


def main() -> None:
    found = environment()
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items() if value)
    page = [
        "# CPU benchmarks",
        "",
        f"`make bench`, {found['date']}: {found['cpu']}, {found['num_cores']} cores, {found['num_threads']} thread, "
        f"Python {found['python']}, {versions}. Baseline and ours alternate in one run; spread is slowest minus "
        "fastest over the median.",
    ]
    for number, (title, path, run) in CHAPTERS.items():
        print(f"{number}: {title}", file=sys.stderr, flush=True)
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            write_result(path, run())
        print(shown.getvalue(), flush=True)
        page += ["", f"## {number}: {title}", "", shown.getvalue().strip()]
    PAGE.write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
