"""`caspi export`: a checkpoint as a folder that can be served and published, with proof of what it holds.

Writes OUTPUT/hf and OUTPUT/original (as asked) and OUTPUT/export_report.json; the folder appears when everything is
proved. The same command again finds it and goes on with what is left, the upload.
"""

import hashlib
import os
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caspi.config import Export, Recipe
from caspi.model.checkpoints.checkpoint import load_asr, local_folder
from caspi.model.checkpoints.round_trip import RoundTrip, write_and_read_back
from caspi.model.checkpoints.source import Loaded, Source, load_source
from caspi.model.checkpoints.weight_proof import WeightProof, prove_weights
from caspi.ops import provenance
from caspi.ops.comparison.criteria import read_object
from caspi.ops.release import hub
from caspi.ops.release.model_card import CardFacts, model_card, read_results
from caspi.ops.training.artifacts import differing_keys, flush_to_disk
from caspi.ops.training.run_folder import Choice, choose, model_files, trained_as, trained_groups
from caspi.records import ExitCode, RunFailed, read_manifest, sha256_of_file, write_atomically, write_json
from caspi.speech.corpora.audio import AudioError, load_audio

REPORT = "export_report.json"
PUBLISHED = "published.json"


def run(recipe: Recipe) -> int:
    """Export, and upload where that is asked.

    Raises:
        ValueError: the run, the checkpoint or another file cannot be used, or the output holds something else.
        RunFailed: the export could not be proved right, or the upload failed; a proved export stays.
    """
    section = recipe.export
    if section.hub_model_id:
        hub.check_repo_id(section.hub_model_id)
    choice = choose(section)
    print(*(f"note: {line}" for line in choice.notes), *(f"exporting {line}" for line in choice.described), sep="\n")
    source = source_of(section, choice)
    clip = clip_of(section, source)
    request = request_of(section, source, clip)
    if section.output.exists():
        check_existing(section.output, request)
        print(f"{section.output} holds this export already: its files are as they were proved")
    else:
        export(section, source, choice, clip, request)
    for layout in section.layouts():
        print(f"serve it with: vllm serve {section.output / layout} --port 8000")
    return push(section) if section.push_to_hub else ExitCode.DONE


def source_of(section: Export, choice: Choice) -> Source:
    train, language = trained_as(section.run_dir, choice.folders[0])
    weights = section.average_weights if section.checkpoint == "average" else ()
    return Source(choice.folders, weights, train, trained_groups(train, choice.stages), language)


def clip_of(section: Export, source: Source) -> np.ndarray:
    """Samples [num_samples] at 16 kHz of the clip that every layout transcribes."""
    try:
        if section.clip:
            return load_audio(section.clip)
        if not source.train.manifest.is_file():
            raise ValueError(f"no clip to transcribe: {source.train.manifest} is not there; give --clip FILE")
        first = next((one for one in read_manifest(source.train.manifest) if not one.needs_resegmentation), None)
        if first is None:
            raise ValueError(f"no clip to transcribe: {source.train.manifest} has only long ones; give --clip FILE")
        return load_audio(first.audio_filepath, first.offset, first.duration)
    except AudioError as error:
        raise ValueError(f"the clip cannot be read: {error}") from None


def request_of(section: Export, source: Source, clip: np.ndarray) -> dict[str, Any]:
    """Everything that decides the exported bytes."""
    given = {"evaluation": section.evaluation and section.evaluation / "scores.json", "comparison": section.comparison}
    return {
        "checkpoints": {folder.name: model_files(folder) for folder in source.folders},
        "average_weights": list(source.average_weights),
        "base_model": model_files(local_folder(base_model_of(section, source))),
        "layouts": list(section.layouts()),
        "dtype": section.dtype,
        "max_shard_size": section.max_shard_size,
        "language": source.language,
        "license": section.license,
        "clip_sha256": hashlib.sha256(clip.tobytes()).hexdigest(),
        **{f"{name}_sha256": sha256_of_file(path) if path and path.is_file() else None for name, path in given.items()},
    }


def base_model_of(section: Export, source: Source) -> str:
    return section.base_model or source.train.base_model


def check_existing(output: Path, request: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: the folder is not this export, or not as it was written.
    """
    way_out = "choose another --output, or delete the folder"
    report = read_object(output / REPORT)
    if not report:
        raise ValueError(f"{output} exists and is no export: {way_out}")
    differences = differing_keys(report["request"], request)
    if differences:
        raise ValueError(f"{output} holds another export ({'; '.join(differences[:5])}): {way_out}")
    for name, entry in report["files"].items():
        path = output / name
        if not path.is_file() or sha256_of_file(path) != entry["sha256"]:
            raise ValueError(f"{path} is not as it was exported: {way_out}")


def export(section: Export, source: Source, choice: Choice, clip: np.ndarray, request: dict[str, Any]) -> None:
    """Load, prove, write, read back, prove again; the output appears by rename."""
    section.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=section.output.parent, prefix=f".{section.output.name}.exporting-"))
    try:
        loaded = load_source(source, base_model_of(section, source), clip)
        proof = prove_against_base(section, source, loaded)
        trip = write_and_read_back(section, loaded, clip, source.language, temporary)
        print(f"{' and '.join(section.layouts())}: read back with all tensors, logits and the text of the clip equal")
        write_cards(section, source, choice, proof, loaded, temporary)
        write_report(temporary, choice, request, proof, loaded, trip)
        make_readable(temporary)
        os.replace(temporary, section.output)
        flush_to_disk(section.output.parent)
    except OSError as error:
        raise RunFailed(f"{section.output} could not be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_readable(folder: Path) -> None:
    """For whoever serves it; safetensors and temporary folders are readable by their owner only."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def prove_against_base(section: Export, source: Source, loaded: Loaded) -> WeightProof:
    """
    Raises:
        RunFailed: something changed that did not train, or the other way round, or merging changed the logits.
    """
    if loaded.merge_difference is not None and loaded.merge_difference > section.max_merge_difference:
        raise RunFailed(
            f"merging the LoRA adapters changed the logits by {loaded.merge_difference:.2e}, more than "
            f"{section.max_merge_difference:.0e}"
        )
    base, _ = load_asr(base_model_of(section, source), torch.float32)
    proof = prove_weights(loaded.model, base, loaded.assigned, loaded.trained)
    print(proof_table(proof))
    if problems := proof.problems():
        raise RunFailed(f"the weights are not what the run should have made: {'; '.join(problems)}")
    return proof


def proof_table(proof: WeightProof) -> str:
    head = f"{'layer group':12} {'tensors':>8} {'trained':>8} {'changed':>8} {'stayed':>8} {'unexpected':>11}"
    lines = [head + f" {'change':>9}"]
    for row in proof.groups:
        counts = f"{row.num_tensors:8} {row.num_expected:8} {row.num_changed_as_expected:8} {row.num_unchanged:8}"
        odd = row.num_unexpectedly_changed + row.num_unexpectedly_unchanged
        lines.append(f"{row.group:12} {counts} {odd:11} {row.relative_change:9.2e}")
    return "\n".join(lines)


def write_cards(
    section: Export, source: Source, choice: Choice, proof: WeightProof, loaded: Loaded, folder: Path
) -> None:
    weights = {path.name: sha256_of_file(path) for path in folder.glob("*/*.safetensors")}
    sources = [model_files(one) for one in source.folders] if len(source.folders) == 1 else []
    known = {*weights.values(), *(digest for files in sources for digest in files.values())}
    base = base_model_of(section, source)
    for layout in section.layouts():
        facts = CardFacts(
            name=section.run_dir.resolve().name,
            layout=layout,
            dtype=section.dtype,
            language=source.language,
            license=section.license,
            base_model=Path(base).name if Path(base).is_dir() else base,
            checkpoints=choice.described,
            adapter_merged=loaded.merge_difference is not None,
            num_parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
            changed_groups=tuple(row.group for row in proof.groups if row.num_changed_as_expected),
            results=read_results(section.evaluation, section.comparison, known),
            versions=provenance.versions(),
        )
        write_atomically(folder / layout / "README.md", model_card(facts))


def write_report(
    folder: Path,
    choice: Choice,
    request: dict[str, Any],
    proof: WeightProof,
    loaded: Loaded,
    trip: RoundTrip,
) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    report = {
        "request": request,
        "checkpoints": list(choice.described),
        "notes": list(choice.notes),
        "weights": proof.model_dump(mode="json"),
        "merge_relative_difference": loaded.merge_difference,
        "round_trip": trip.model_dump(mode="json"),
        "files": {
            path.relative_to(folder).as_posix(): {"num_bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
            for path in paths
        },
        "versions": provenance.versions(),
        "commit": provenance.commit(),
    }
    write_json(folder / REPORT, report)


def push(section: Export) -> ExitCode:
    """Upload each layout, or list what would be uploaded.

    Raises:
        RunFailed: the upload failed; says how to go on.
    """
    assert section.hub_model_id is not None
    published = {}
    for layout in section.layouts():
        repo_id = section.hub_model_id + ("-hf" if section.layout == "both" and layout == "hf" else "")
        folder = section.output / layout
        files = hub.plan_upload(folder)
        kind = "public" if section.public else "private"
        total = sum(file.num_bytes for file in files)
        print(
            f"{'would upload' if section.dry_run else 'uploading'} {len(files)} files, {total:,} bytes, "
            f"to {repo_id} ({kind}):"
        )
        print(*(f"  {file.num_bytes:15,}  {file.name}" for file in files), sep="\n")
        if section.dry_run:
            continue
        try:
            commit = hub.upload(
                folder,
                repo_id,
                public=section.public,
                message=f"Export of {section.run_dir.resolve().name} by caspi",
                attempts=section.upload_attempts,
                wait_seconds=section.upload_wait_seconds,
            )
        except hub.UploadFailed as error:
            raise RunFailed(
                f"{error}\nThe model is complete in {folder}. Try again with:\n  {retry_command(section)}"
            ) from error
        published[layout] = {"repo_id": repo_id, "commit": commit.oid, "url": commit.commit_url}
        write_json(section.output / PUBLISHED, published)
        print(f"uploaded: {commit.commit_url}")
    return ExitCode.DONE


def retry_command(section: Export) -> str:
    """This request as a command line: every field that is not the default."""
    words = ["caspi", "export"]
    for name, value in section.model_dump(mode="json", exclude_defaults=True).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)
