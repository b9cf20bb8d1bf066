"""Is this machine ready to train: each line ok, warn, fail or unknown, with what was found and the way out.

Every question to a server is bounded in time; what could not be asked is `unknown`, never `ok`. `--fetch` downloads the
models and datasets of the recipe beforehand and continues interrupted downloads.
"""

import os
import shutil
from collections.abc import Iterator

from caspi.config import Recipe
from caspi.model import footprint
from caspi.ops.readiness.accounts import wandb_login
from caspi.ops.readiness.collectives import gpus_talk
from caspi.ops.readiness.downloads import fetch_all
from caspi.ops.readiness.finding import Finding
from caspi.ops.readiness.machine import (
    GIB,
    allocator,
    decoders,
    gpus,
    library_versions,
    memory,
    python_version,
)
from caspi.ops.readiness.old_variables import old_variables, translate
from caspi.ops.readiness.online import TOKEN, ask_servers, is_hub_id
from caspi.records import ExitCode, dump_json

FROZEN_BYTES = 2
"""bfloat16."""
TRAINED_BYTES = 4 + 8
"""float32 weights and two moments of Adam."""


def run(recipe: Recipe) -> int:
    translate(os.environ)
    remote = remote_findings(recipe)
    findings = [*local_findings(recipe), *remote]
    if recipe.check.fetch:
        answered = any(finding.status != "unknown" for finding in remote if finding.subject != TOKEN)
        findings += fetch_all(recipe.check, model_ids(recipe), dataset_ids(recipe), answered)
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
    cards = list(gpus(recipe.check))
    yield from cards
    if len(cards) > 2:  # the line that counts them, and one for each
        yield gpus_talk(recipe.check, len(cards) - 1)
    yield memory(recipe.check)
    yield disk(recipe)
    yield from decoders()
    yield allocator()
    yield from old_variables()
    yield wandb_login()


def remote_findings(recipe: Recipe) -> list[Finding]:
    return ask_servers(recipe.check, model_ids(recipe), dataset_ids(recipe))


def disk(recipe: Recipe) -> Finding:
    """Room for models, corpora and the most checkpoints that exist at once."""
    check, train, folder = recipe.check, recipe.train, recipe.train.output_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    # The one being written comes on top; a copy under way keeps its checkpoint and the best one.
    num_checkpoints = train.save_total_limit + (3 if train.mirror else 1)
    corpora = 0.0 if train.manifest.exists() else check.datasets_gib
    needed = check.models_gib + corpora + num_checkpoints * checkpoint_gib(recipe)
    free = shutil.disk_usage(folder).free / GIB
    parts = f"{num_checkpoints} checkpoints of {checkpoint_gib(recipe):.1f}, models {check.models_gib:g}"
    parts += f", corpora {corpora:g}" if corpora else ", corpora are here"
    found = f"{free:.0f} GiB free in {folder}, {needed:.0f} GiB needed ({parts})"
    if free >= 1.1 * needed:
        return Finding("Disk", "ok", found)
    return Finding("Disk", "fail", found, "free space, or put --output-dir and HF_HOME on a larger disk")


def checkpoint_gib(recipe: Recipe) -> float:
    """Of the stage that trains most: weights, and Adam's moments of what has trained."""
    train = recipe.train
    shape = footprint.shape_of(train.base_model)
    parts = footprint.parameters(shape, train.num_audio_top_layers, train.num_llm_top_layers)
    groups = {group for stage in train.stages for group in stage.learning_rates}
    trained = sum(number for group, number in parts.items() if group in groups)
    frozen = sum(parts.values()) - trained
    return (trained * TRAINED_BYTES + frozen * FROZEN_BYTES) / GIB


def model_ids(recipe: Recipe) -> list[str]:
    names = [recipe.train.base_model, recipe.audit.aligner_model, recipe.compare.round1_model]
    return [name for name in dict.fromkeys(names) if is_hub_id(name)]


def dataset_ids(recipe: Recipe) -> list[str]:
    """Without the split that a test set may name (OWNER/NAME:SPLIT)."""
    sources = [*recipe.prepare.datasets, *(entry.partition("=")[2] for entry in recipe.evaluate.test_sets)]
    return [name for name in dict.fromkeys(source.partition(":")[0] for source in sources) if is_hub_id(name)]
