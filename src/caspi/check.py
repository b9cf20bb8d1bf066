"""Is this machine ready to train: each line ok, warn, fail or unknown, with what was found and the way out.

Every question to a server is bounded in time; what could not be asked is `unknown`, never `ok`. `--fetch` downloads the
models and datasets of the recipe beforehand and continues interrupted downloads.
"""

import importlib.metadata
import io
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple

from packaging.requirements import Requirement

from caspi.config import Check, Recipe
from caspi.env import is_logged_in
from caspi.records import ExitCode, dump_json

GIB = 2**30
NVIDIA_SMI = [
    "nvidia-smi",
    "--query-gpu=name,memory.total,memory.free,temperature.gpu",
    "--format=csv,noheader,nounits",
]


class Finding(NamedTuple):
    subject: str
    status: Literal["ok", "warn", "fail", "unknown"]
    found: str
    fix: str = ""
    """What to do; empty when nothing has to be done."""


def run(recipe: Recipe) -> int:
    findings = [*local_findings(recipe), *remote_findings(recipe)]
    if recipe.check.fetch:
        findings += fetch_all(recipe)
    if recipe.check.json_output:
        print(dump_json([finding._asdict() for finding in findings], indent=2))
    else:
        show(findings)
    return ExitCode.NO if any(finding.status == "fail" for finding in findings) else ExitCode.DONE


def show(findings: list[Finding]) -> None:
    for finding in findings:
        print(f"{finding.status:8}{finding.subject:42} {finding.found}")
        if finding.fix:
            print(f"{'':51}-> {finding.fix}")
    counts = {status: sum(f.status == status for f in findings) for status in ("ok", "warn", "fail", "unknown")}
    print(", ".join(f"{count} {status}" for status, count in counts.items()))


def local_findings(recipe: Recipe) -> Iterator[Finding]:
    yield python_version()
    yield from library_versions()
    yield from gpus(recipe.check)
    yield memory(recipe.check)
    yield disk(recipe)
    yield from decoders()
    yield allocator()
    yield wandb_login()


def python_version() -> Finding:
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("Python", "ok", version)
    return Finding("Python", "fail", version, "use Python 3.11, 3.12 or 3.13")


def library_versions() -> Iterator[Finding]:
    """Installed versions against the ranges in pyproject.toml, which are the tested ones."""
    for line in importlib.metadata.requires("caspi") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(requirement.name, "fail", "not installed", "make setup")
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        fix = "" if fits else f"tested with {requirement.specifier}: make setup"
        yield Finding(requirement.name, "ok" if fits else "warn", version, fix)


def gpus(check: Check) -> Iterator[Finding]:
    try:
        output = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, check=True, timeout=check.timeout_seconds)
    except (OSError, subprocess.SubprocessError):
        fix = "audit, prepare and compare run on a CPU; train needs GPUs with a working driver (nvidia-smi)"
        yield Finding("GPUs", "fail", "none visible", fix)
        return
    rows = [line.split(", ") for line in output.stdout.strip().splitlines()]
    enough = len(rows) >= check.num_gpus
    fix = "" if enough else f"the recipe was made for {check.num_gpus}; fewer take longer (caspi train --help)"
    yield Finding("GPUs", "ok" if enough else "warn", str(len(rows)), fix)
    for index, (name, total_mib, free_mib, celsius) in enumerate(rows):
        total_gib, free_gib = float(total_mib) / 1024, float(free_mib) / 1024
        found = f"{name}, {total_gib:.1f} GiB, {free_gib:.1f} GiB free, {celsius} C"
        if total_gib < check.min_gpu_memory_gib:
            fix = "use --batch-size 1 --gradient-accumulation-steps 32"
            yield Finding(f"GPU {index}", "warn", found, fix)
        elif free_gib < 0.9 * total_gib:
            yield Finding(f"GPU {index}", "warn", found, "another process holds memory: see nvidia-smi")
        else:
            yield Finding(f"GPU {index}", "ok", found)


def memory(check: Check) -> Finding:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    if gib >= check.min_ram_gib:
        return Finding("RAM", "ok", f"{gib:.0f} GiB")
    return Finding(
        "RAM", "warn", f"{gib:.0f} GiB", "the guide asks for 128 GB; loader workers and the page cache live there"
    )


def disk(recipe: Recipe) -> Finding:
    """Room for models, datasets and the most checkpoints that exist at once: the limit and the one being written."""
    check, folder = recipe.check, recipe.train.output_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    needed = check.models_gib + check.datasets_gib + (recipe.train.save_total_limit + 1) * check.checkpoint_gib
    free = shutil.disk_usage(folder).free / GIB
    found = f"{free:.0f} GiB free in {folder}, {needed:.0f} GiB needed"
    if free >= 1.1 * needed:
        return Finding("Disk", "ok", found)
    return Finding("Disk", "fail", found, "free space, or put --output-dir and HF_HOME on a larger disk")


def decoders() -> Iterator[Finding]:
    """A tenth of a second of silence through each container that corpora come in."""
    import numpy as np
    import soundfile

    for container, encoding in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("OGG", "OPUS")):
        buffer = io.BytesIO()
        try:
            soundfile.write(buffer, np.zeros(1600, np.float32), 16_000, format=container, subtype=encoding)
            buffer.seek(0)
            samples, _ = soundfile.read(buffer)
        except (soundfile.LibsndfileError, ValueError) as error:
            yield Finding(f"Decoder {container}", "fail", str(error), "make setup (soundfile carries libsndfile)")
        else:
            status: Literal["ok", "fail"] = "ok" if len(samples) >= 1600 else "fail"
            yield Finding(f"Decoder {container}", status, encoding)


def allocator() -> Finding:
    value = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
    if "expandable_segments:True" in value:
        return Finding("PYTORCH_CUDA_ALLOC_CONF", "ok", value)
    fix = "source scripts/setup_wandb.sh, or export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
    return Finding("PYTORCH_CUDA_ALLOC_CONF", "warn", value or "not set", fix)


def wandb_login() -> Finding:
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return Finding("W&B", "ok", "disabled; TensorBoard only")
    if os.environ.get("WANDB_MODE") == "offline":
        return Finding("W&B", "ok", "offline; `wandb sync` later")
    if is_logged_in():
        return Finding("W&B", "ok", "a key is stored")
    return Finding("W&B", "warn", "not logged in", "wandb login, or export WANDB_MODE=offline")


def remote_findings(recipe: Recipe) -> list[Finding]:
    """Token, access to each model and dataset, clock; asked at the same time, each within the time-out."""
    from huggingface_hub import HfApi

    api = HfApi()
    timeout = recipe.check.timeout_seconds
    questions: list[tuple[str, Callable[[], str]]] = [("Hugging Face token", lambda: token_owner(timeout))]
    for name in model_ids(recipe):
        questions.append((name, lambda name=name: f"revision {api.model_info(name, timeout=timeout).sha}"))  # type: ignore[misc]
    for name in dataset_ids(recipe):
        questions.append((name, lambda name=name: f"revision {api.dataset_info(name, timeout=timeout).sha}"))  # type: ignore[misc]
    questions.append(("Clock", lambda: clock(recipe.check)))
    with ThreadPoolExecutor(max_workers=len(questions)) as pool:
        return list(pool.map(lambda question: ask(*question), questions))


def ask(subject: str, question: Callable[[], str]) -> Finding:
    """Put one question to a server and sort the ways in which it can fail."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

    try:
        return Finding(subject, "ok", question())
    except LocalTokenNotFoundError:
        return Finding(subject, "fail", "none", "hf auth login, or export HF_TOKEN")
    except GatedRepoError:
        return Finding(subject, "fail", "gated", f"request access on its page: {subject}")
    except RepositoryNotFoundError:
        return Finding(subject, "fail", "not found or not readable with this token", "check the id and the token")
    except HfHubHTTPError as error:
        return Finding(subject, "fail", f"HTTP {error.response.status_code}", "check the token's permissions")
    except (HTTPError, OSError) as error:
        return Finding(subject, "unknown", f"could not ask: {error}", "check the network, then run caspi check again")
    except ValueError as error:
        return Finding(subject, "fail", str(error), "set the clock (NTP)")


def token_owner(timeout_seconds: float) -> str:
    """Who the token belongs to; asked directly, since the library's `whoami` knows no time-out."""
    import httpx2
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import LocalTokenNotFoundError
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    if get_token() is None:
        raise LocalTokenNotFoundError("no token")
    url = f"{constants.ENDPOINT}/api/whoami-v2"
    response = httpx2.get(url, headers=build_hf_headers(), timeout=timeout_seconds)
    hf_raise_for_status(response)
    return f"belongs to {response.json()['name']}"


def clock(check: Check) -> str:
    """Difference to the hub's clock; signed requests fail when it is large.

    Raises:
        ValueError: the clock is off by more than allowed.
    """
    import httpx2
    from huggingface_hub import constants

    response = httpx2.head(constants.ENDPOINT, timeout=check.timeout_seconds)
    skew = abs(time.time() - parsedate_to_datetime(response.headers["date"]).timestamp())
    if skew > check.max_clock_skew_seconds:
        raise ValueError(f"off by {skew:.0f} s")
    return f"within {skew:.0f} s of the hub's"


def model_ids(recipe: Recipe) -> list[str]:
    names = [recipe.train.base_model, recipe.audit.aligner_model, recipe.compare.round1_model]
    return [name for name in dict.fromkeys(names) if is_hub_id(name)]


def dataset_ids(recipe: Recipe) -> list[str]:
    names = [*recipe.prepare.datasets, *(entry.partition("=")[2] for entry in recipe.evaluate.test_sets)]
    return [name for name in dict.fromkeys(names) if is_hub_id(name)]


def is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/")) and not os.path.exists(name)  # noqa: PTH110


def fetch_all(recipe: Recipe) -> Iterator[Finding]:
    for kind, names in (("model", model_ids(recipe)), ("dataset", dataset_ids(recipe))):
        for name in names:
            yield fetch(name, kind, recipe.check)


def fetch(name: str, kind: str, check: Check) -> Finding:
    """Download one repository; a later try continues where an earlier one stopped."""
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    problem = ""
    for attempt in range(check.fetch_attempts):
        try:
            return Finding(f"Fetched {name}", "ok", snapshot_download(name, repo_type=kind))
        except (HfHubHTTPError, HTTPError, OSError) as error:
            problem = str(error).splitlines()[0]
            print(f"{name}: try {attempt + 1} of {check.fetch_attempts} failed: {problem}", file=sys.stderr)
            if attempt + 1 < check.fetch_attempts:
                time.sleep(2**attempt)
    return Finding(f"Fetched {name}", "fail", problem, "HF_HUB_DOWNLOAD_TIMEOUT=300 caspi check --fetch continues it")
