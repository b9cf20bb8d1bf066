"""Files of earlier steps, edited or planted by strangers: reports, sign-offs, recipes, runs, predictions, weights."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from limited import assert_refused, caspi, put, sparse
from made_runs import make_run

from caspi.model.assets import TINY_BASE

GIB = 2**30
DEEP = b"[" * 100_000
DEEP_OBJECT = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
EVERYWHERE: dict[str, Callable[[Path], object]] = {
    "garbage": put(lambda: bytes(range(256))),
    "list": put(lambda: b"[1, 2]"),
    "nested deeply": put(lambda: DEEP_OBJECT),
    "cut off": put(lambda: b'{"schema_version": 1, "deci'),
    "NaN": put(lambda: b'{"low_quality_percentage": NaN, "step": NaN}'),
    "number of 5000 digits": put(lambda: b'{"step": ' + b"9" * 5000 + b"}"),
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "a gigabyte": lambda path: sparse(path, GIB),
    "UTF-16": put(lambda: "{}".encode("utf-16")),
}
"""What may lie where a JSON file is expected."""


def report(**changes: Any) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "decision": "PROCEED",
        "decision_code": "PROCEED",
        "decision_notes": [],
        "audit_valid": True,
        "low_quality_percentage": 3.0,
        "total_samples": 0,
        "low_quality_count": 0,
        "recommendation": "go",
        "domain_statistics": {},
        "detailed_metrics": [],
        "provenance": {"manifest_sha256": "0" * 64, "created_utc": "2100-01-01T00:00:00+00:00", "backend": "qwen"},
        **changes,
    }


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_a_hostile_report_is_refused_with_one_line(kind: str, tmp_path: Path) -> None:
    EVERYWHERE[kind](tmp_path / "report.json")
    assert_refused(caspi("gate", "--report", "report.json", folder=tmp_path), "report.json")


EDITS: dict[str, dict[str, Any]] = {
    "percentage above 100": {"low_quality_percentage": 1e9},
    "percentage is text": {"low_quality_percentage": "3; rm -rf /"},
    "decision of its own": {"decision": "GO"},
    "samples that are not there": {"total_samples": 5},
    "no date": {"provenance": report()["provenance"] | {"created_utc": "tomorrow"}},
    "hash of something else": {"provenance": report()["provenance"] | {"manifest_sha256": "../../x"}},
    "another version": {"schema_version": 2},
}


@pytest.mark.parametrize("kind", EDITS)
def test_a_report_with_an_impossible_value_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report(**EDITS[kind])), encoding="utf-8")
    assert_refused(caspi("gate", "--report", "report.json", folder=tmp_path), "report.json")


def test_a_stop_turned_into_proceed_after_the_sign_off_keeps_the_gate_shut(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report(decision="STOP", low_quality_percentage=40.0)), encoding="utf-8")
    gate = ("gate", "--report", "report.json")
    assert caspi(*gate, "--signoff", "a reviewer", folder=tmp_path).exit_code == 1
    path.write_text(json.dumps(report()), encoding="utf-8")
    ended = caspi(*gate, folder=tmp_path)
    assert ended.exit_code == 1
    assert "has no sign-off of this report" in ended.out


@pytest.mark.parametrize("kind", ["garbage", "fifo", "folder", "device", "a gigabyte", "UTF-16"])
def test_a_hostile_sign_off_file_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report()), encoding="utf-8")
    EVERYWHERE[kind](tmp_path / "signoff.txt")
    ended = caspi("gate", "--report", "report.json", "--signoff-file", "signoff.txt", folder=tmp_path)
    assert_refused(ended, "signoff.txt")


RECIPES: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown section": (put(lambda: b"[shell]\ncommand = 'id'\n"), "shell"),
    "unknown key": (put(lambda: b"[train]\nexec = 'id'\n"), "train.exec"),
    "nested deeply": (put(lambda: b"a = " + DEEP), "nested too deeply"),
    "tables in tables": (put(lambda: b"[" + b"a." * 20_000 + b"a]\n"), "recipe"),
    "inline tables": (put(lambda: b"a = " + b"{a = " * 20_000), "nested too deeply"),
    "not a number": (put(lambda: b"[train]\nmax_grad_norm = nan\n"), "max_grad_norm"),
    "infinity": (put(lambda: b"[train]\nmax_grad_norm = inf\n"), "max_grad_norm"),
    "number of 5000 digits": (put(lambda: b"[train]\nseed = " + b"9" * 5000), "recipe"),
    "wrong type": (put(lambda: b"[train]\nstages = 'all'\n"), "train.stages"),
    "two megabytes": (put(lambda: b"# " + b"x" * 2**21), "more than 1 MiB"),
    "not UTF-8": (put(lambda: b"[train]\nbase_model = '\xff'\n"), "not UTF-8"),
    "fifo": (os.mkfifo, "is a FIFO"),
    "folder": (Path.mkdir, "is a folder"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
}


@pytest.mark.parametrize("kind", RECIPES)
def test_a_hostile_recipe_is_refused_with_one_line(kind: str, tmp_path: Path) -> None:
    make, expected = RECIPES[kind]
    make(tmp_path / "recipe.toml")
    assert_refused(caspi("plan", "--recipe", "recipe.toml", folder=tmp_path), expected)


@pytest.mark.parametrize("kind", EVERYWHERE)
def test_a_hostile_run_record_is_refused_by_those_who_read_it(kind: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "training.log").write_text("", encoding="utf-8")
    EVERYWHERE[kind](tmp_path / "run" / "run.json")
    ended = caspi("watch", "run", "--once", folder=tmp_path)
    if kind == "NaN":
        assert ended.exit_code in (0, 1), "its strange fields are none of ours"
    else:
        assert_refused(ended, "run.json")


def test_hostile_lines_of_metrics_are_counted_and_the_rest_is_shown(tmp_path: Path) -> None:
    lines = [b'{"step": 1, "loss": 2.5}', DEEP, DEEP_OBJECT, b"[1]", b'{"step": 2, "loss": NaN}', b"\xff\xfe"]
    lines += [b'{"step": 2, "loss": 1e400}', b'{"step": 2, "loss": ' + b"9" * 400 + b"}", b'{"step": "2"}', b"null"]
    lines += [b'{"step": 3, "loss": 1.5, "alert": "<script>"}']
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    ended = caspi("watch", "run", "--once", folder=tmp_path)
    assert ended.exit_code == 1
    assert f"{len(lines) - 2} lines of metrics.jsonl are no entries" in ended.out
    assert "1.5" in ended.out


def prediction(**changes: Any) -> dict[str, Any]:
    fields = {"id": "a", "test_set": "t", "reference": "שלום", "hypothesis": "שלום", "domain": "d", "group_id": None}
    return fields | {"duration": 1.0, "finish_reason": "stop"} | changes


PREDICTIONS: dict[str, bytes] = {
    "garbage": bytes(range(256)),
    "nested deeply": DEEP,
    "a list": b"[]\n",
    "NaN": json.dumps(prediction(duration=float("nan"))).encode(),
    "1e400": json.dumps(prediction(duration=0.5)).replace("0.5", "1e400").encode(),
    "unknown key": json.dumps(prediction(exec="id")).encode(),
    "hypothesis is a number": json.dumps(prediction(hypothesis=7)).encode(),
    "same id twice": (json.dumps(prediction()) + "\n" + json.dumps(prediction(hypothesis="אחר"))).encode(),
    "UTF-16": json.dumps(prediction()).encode("utf-16"),
    "nothing": b"",
}


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_hostile_predictions_are_refused_with_one_line(kind: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "predictions.jsonl").write_bytes(PREDICTIONS[kind])
    ended = caspi("compare", "--round1-model", "one", "--round2-model", "two", folder=tmp_path)
    assert_refused(ended, "predictions.jsonl")


MANIFESTS: dict[str, Callable[[Path], object]] = {
    "garbage": put(lambda: bytes(range(256))),
    "nested deeply": put(lambda: DEEP),
    "nothing": put(lambda: b""),
    "line of a gigabyte": lambda path: sparse(path, GIB),
    "fifo": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "negative duration": put(lambda: b'{"id": "a", "audio_filepath": "a", "text": "x", "duration": -1, "domain": "d"}'),
    "duration 1e400": put(lambda: b'{"id": "a", "audio_filepath": "a", "text": "x", "duration": 1e400, "domain": "d"}'),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_hostile_manifest_in_the_place_of_a_prepared_one_is_refused(kind: str, tmp_path: Path) -> None:
    MANIFESTS[kind](tmp_path / "m.jsonl")
    assert_refused(caspi("audit", "--backend", "uniform", "--manifest", "m.jsonl", folder=tmp_path), "m.jsonl")


class PlantedPickle:
    """Unpickling it creates a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.proof),))


def test_the_planted_pickle_works_where_it_is_unpickled(tmp_path: Path) -> None:
    data = pickle.dumps(PlantedPickle(tmp_path / "proof"))
    pickle.loads(data)  # noqa: S301  our own bytes: the proof that the next tests prove something
    assert (tmp_path / "proof").exists()


PICKLES = {
    "instead of the weights": ("pytorch_model.bin", True),
    "named safetensors": ("model.safetensors", False),
    "shard named in an index": ("model.safetensors.index.json", True),
    "as adapter": ("adapter_model.bin", False),
    "as arguments of training": ("training_args.bin", False),
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_in_a_checkpoint_is_never_unpickled(kind: str, tmp_path: Path) -> None:
    name, without_weights = PICKLES[kind]
    model, proof = tmp_path / "model", tmp_path / "proof"
    shutil.copytree(TINY_BASE, model)
    if without_weights:
        (model / "model.safetensors").unlink()
    data = pickle.dumps(PlantedPickle(proof))
    if name.endswith(".index.json"):
        (model / "pytorch_model-1.bin").write_bytes(data)
        weights = {"model.language_model.norm.weight": "pytorch_model-1.bin"}
        data = json.dumps({"metadata": {"total_size": 1}, "weight_map": weights}).encode()
    (model / name).write_bytes(data)
    sets = tmp_path / "t.jsonl"
    sets.write_text(json.dumps({"id": "a", "audio_filepath": "a.wav", "text": "כן", "duration": 1, "domain": "d"}))
    ended = caspi("evaluate", "--model", "model", "--test-sets", "t=t.jsonl", folder=tmp_path, extra_memory_mib=4096)
    assert not proof.exists()
    if kind in ("instead of the weights", "named safetensors", "shard named in an index"):
        assert_refused(ended, "model")


def test_a_checkpoint_that_wants_code_to_be_run_runs_none(tmp_path: Path) -> None:
    model, proof = tmp_path / "model", tmp_path / "proof"
    shutil.copytree(TINY_BASE, model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config |= {"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}, "trust_remote_code": True}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (model / "evil.py").write_text(f"import os; os.mkdir({str(proof)!r})\n", encoding="utf-8")
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"id": "a", "audio_filepath": "a.wav", "text": "כן", "duration": 1, "domain": "d"})
    )
    caspi("evaluate", "--model", "model", "--test-sets", "t=t.jsonl", folder=tmp_path, extra_memory_mib=4096)
    assert not proof.exists()


MARKERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a file outside": lambda marker: marker["files"].update({"../../../etc/passwd": {"num_bytes": 1, "sha256": "0"}}),
    "a device": lambda marker: marker["files"].update({"/dev/zero": {"num_bytes": 0, "sha256": "0"}}),
    "another hash": lambda marker: marker["files"]["config.json"].update({"sha256": "0" * 64}),
    "another size": lambda marker: marker["files"]["config.json"].update({"num_bytes": 10**30}),
    "no files": lambda marker: marker.update({"files": {}}),
    "step 0": lambda marker: marker.update({"step": 0}),
}


@pytest.fixture(scope="module")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), {100: 0.3})


@pytest.mark.parametrize("kind", [*MARKERS, *EVERYWHERE])
def test_a_checkpoint_with_a_tampered_marker_is_not_used(kind: str, made_run: Path, tmp_path: Path) -> None:
    shutil.copytree(made_run, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint-100" / "COMPLETE.json"
    if kind in MARKERS:
        marker = json.loads(path.read_text(encoding="utf-8"))
        MARKERS[kind](marker)
        path.write_text(json.dumps(marker), encoding="utf-8")
    else:
        path.unlink()
        EVERYWHERE[kind](path)
    ended = caspi("rollback", "--option", "best-checkpoint", "--run-dir", "run", "--backup", "none", folder=tmp_path)
    assert_refused(ended, "has no usable checkpoint")


@pytest.mark.parametrize("kind", [kind for kind in EVERYWHERE if kind != "folder"])
def test_a_damaged_registry_is_refused_and_not_written_over(kind: str, tmp_path: Path) -> None:
    EVERYWHERE[kind](tmp_path / "registry.jsonl")
    assert_refused(caspi("rollback", "--registry", "registry.jsonl", folder=tmp_path), "registry.jsonl")
