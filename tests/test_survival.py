"""What goes wrong in a run and must not end it, or must end it cleanly: memory, disk, broken clips, wrong labels."""

import json
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_training import (
    NUM_STEPS,
    build_inputs,
    kill_before_step,
    train,
    train_in_child,
    train_in_children,
    weights,
    weights_hash,
)

from caspi.model.packed.batch import Clip, PackedBatch, Packer
from caspi.model.training.batch import Part
from caspi.model.training.gradients import Gradients
from caspi.model.training.trainer import StageTrainer
from caspi.ops.release import hub
from caspi.ops.training.artifacts import read_marker
from caspi.ops.training.final_upload import upload_final
from caspi.ops.training.run_lock import only_run_in

LAST = f"checkpoint-{NUM_STEPS}"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    assert train_in_child(recipe, output, "--save-total-limit", "9") == 0
    return output


def log_of(output: Path) -> str:
    return (output / "training.log").read_text()


def record_of(output: Path) -> dict[str, object]:
    record: dict[str, object] = json.loads((output / "run.json").read_text())
    return record


def gap(ours: Path, theirs: Path) -> float:
    """Adam turns rounding of a zero gradient into full steps, so the attention's key biases are left out."""
    left, right = weights(ours), weights(theirs)
    return max(float((left[name] - right[name]).abs().max()) for name in right if "k_proj.bias" not in name)


def run_out_of_memory(step: int, most_clips: int, rank: int, ranks: tuple[int, ...] = (0, 1)) -> None:
    """From a step on, more than `most_clips` at once do not fit."""
    original = Gradients.loss_of

    def loss_of(self: Gradients, model: torch.nn.Module, part: Part, num_items: object) -> torch.Tensor:
        _, num_clips = self.run.parts.sizes(part)
        if self.trainer.state.global_step >= step and num_clips > most_clips and rank in ranks:
            raise torch.cuda.OutOfMemoryError("planted")
        return original(self, model, part, num_items)

    Gradients.loss_of = loss_of  # type: ignore[method-assign]


@pytest.mark.parametrize("step", ["packed", "padded"])
def test_out_of_memory_halves_what_is_computed_at_once_keeps_the_step_and_is_remembered(
    step: str, recipe: Path, finished: Path, tmp_path: Path
) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    flags = ("--step", step)
    assert train_in_child(recipe, whole, *flags, prepare=lambda: run_out_of_memory(2, 1, 0)) == 0
    limits = read_marker(whole / LAST).limits()
    if step == "padded":
        assert "GPU memory ran out: at most 1 instead of 3 utterances at once" in log_of(whole)
        assert log_of(whole).count("GPU memory ran out") == 1
        assert limits == {"micro_batch_size": 1, "token_budget": None}
    else:
        halvings = re.findall(r"at most (\d+) instead of (\d+) text positions at once", log_of(whole))
        assert 2 <= len(halvings) <= 5
        assert all(int(after) == int(before) // 2 for after, before in halvings)
        assert limits == {"micro_batch_size": None, "token_budget": int(halvings[-1][0])}
    assert gap(whole / LAST, finished / LAST) < 1e-4

    def plant() -> None:
        run_out_of_memory(2, 1, 0)
        kill_before_step(5)

    assert train_in_child(recipe, halved, *flags, prepare=plant) == -signal.SIGKILL
    assert train_in_child(recipe, halved, *flags) == 0
    assert weights_hash(halved / LAST) == weights_hash(whole / LAST)


def test_memory_that_runs_out_on_one_process_halves_on_all(recipe: Path, finished: Path, tmp_path: Path) -> None:
    flags = ("--batch-size", "3", "--gradient-accumulation-steps", "1")
    codes = train_in_children(recipe, tmp_path, *flags, prepare=lambda rank: run_out_of_memory(2, 2, rank, (1,)))
    assert codes == [0, 0]
    assert (read_marker(tmp_path / LAST).token_budget or 0) > 0
    assert "GPU memory ran out" in log_of(tmp_path)
    assert gap(tmp_path / LAST, finished / LAST) < 1e-4


def test_a_single_utterance_that_does_not_fit_ends_the_run_with_advice(recipe: Path, tmp_path: Path) -> None:
    assert train_in_child(recipe, tmp_path, prepare=lambda: run_out_of_memory(1, 0, 0)) == 3
    assert "--max-audio-length-seconds 12" in log_of(tmp_path)


def fill_the_disk_before_step(step: int) -> None:
    """No file may become larger than a megabyte; the model has two."""
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    StageTrainer.training_step = training_step  # type: ignore[method-assign]


def test_a_full_disk_stops_the_run_with_the_checkpoint_before_intact(
    recipe: Path, finished: Path, tmp_path: Path
) -> None:
    assert train_in_child(recipe, tmp_path, prepare=lambda: fill_the_disk_before_step(4)) == 3
    assert "checkpoint-6 could not be written" in log_of(tmp_path)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
    assert train_in_child(recipe, tmp_path) == 0
    assert weights_hash(tmp_path / LAST) == weights_hash(finished / LAST)


def test_too_little_room_is_said_before_training(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(recipe, tmp_path, "--save-total-limit", "100000000") == 2
    assert "GiB free" in capsys.readouterr().err


def broken_copy(recipe: Path, folder: Path, *clips: int) -> list[str]:
    """Flags of a run whose manifest names clips that cannot be decoded: whole headers, and not a sample behind."""
    rows = [json.loads(line) for line in (recipe.parent / "manifest.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):
        source = recipe.parent / row["audio_filepath"]
        data = source.read_bytes()
        row["audio_filepath"] = str(folder / source.name)
        (folder / source.name).write_bytes(b"no audio" if index in clips else data)
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return ["--manifest", str(manifest)]


def test_broken_clips_are_counted_and_too_many_stop_the_run(recipe: Path, tmp_path: Path) -> None:
    flags = broken_copy(recipe, tmp_path, 3)
    output = tmp_path / "out"
    assert train_in_child(recipe, output, *flags) == 3
    assert "1 of 22 clips cannot be decoded, more than 1%" in log_of(output)
    (line,) = (output / "quarantine.jsonl").read_text().splitlines()
    assert (json.loads(line)["id"], json.loads(line)["reason"]) == ("u3", "AUDIO_UNSUPPORTED")


def break_clip_before_step(path: Path, step: int) -> None:
    """A file that goes bad after the start, when its header was looked at."""
    original = StageTrainer.training_step

    def training_step(self: StageTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == step:
            path.write_bytes(b"no audio")
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    StageTrainer.training_step = training_step  # type: ignore[method-assign]


def test_a_clip_that_breaks_on_the_way_is_out_everywhere_and_stays_out_after_a_resume(
    recipe: Path, tmp_path: Path
) -> None:
    flags = ["--max-undecodable-fraction", "0.1", "--feature-cache-mib", "0"]
    hashes = []
    for name, kill in (("whole", False), ("killed", True)):
        folder = tmp_path / name
        folder.mkdir()
        flags_of_run = [*flags, *broken_copy(recipe, folder, 24)]

        def plant(folder: Path = folder, kill: bool = kill) -> None:
            break_clip_before_step(folder / "clip5.wav", 3)
            if kill:
                kill_before_step(7)

        codes = [train_in_child(recipe, folder / "out", *flags_of_run, prepare=plant)]
        if kill:
            codes.append(train_in_child(recipe, folder / "out", *flags_of_run))
        assert codes == ([-signal.SIGKILL, 0] if kill else [0])
        lines = (folder / "out" / "quarantine.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == ["u24", "u5"]
        hashes.append(weights_hash(folder / "out" / LAST))
    assert hashes[0] == hashes[1]


def misplace_predictions() -> None:
    """The labels are right and the positions that should predict them are one too late: only the loss shows it."""
    original = Packer.pack

    def pack(self: Packer, clips: Sequence[Clip]) -> PackedBatch:
        made = original(self, clips)
        return made._replace(inputs=made.inputs | {"target_rows": torch.as_tensor(made.inputs["target_rows"]) + 1})

    Packer.pack = pack  # type: ignore[method-assign]


def test_a_first_loss_above_the_bound_stops_with_the_likely_cause(recipe: Path, tmp_path: Path) -> None:
    assert train_in_child(recipe, tmp_path, "--max-first-loss", "5") == 3
    assert "the model guesses (ln of its vocabulary is 6.57): is base_model trained at all?" in log_of(tmp_path)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_labels_in_the_wrong_place_are_found_by_the_first_loss(recipe: Path, tmp_path: Path) -> None:
    """A base model that knows the corpus by heart makes the bug visible."""
    learned = tmp_path / "learned"
    long = ["--stages.0.num-epochs", "12", "--stages.1.num-epochs", "12", "--eval-steps", "100"]
    assert train_in_child(recipe, learned, *long, "--final-model", "last") == 0
    flags = ["--base-model", str(learned)]
    assert train_in_child(recipe, tmp_path / "good", *flags, "--max-first-loss", "2.5") == 0
    bad = tmp_path / "bad"
    assert train_in_child(recipe, bad, *flags, "--max-first-loss", "2.5", prepare=misplace_predictions) == 3
    assert "the labels are not where the model predicts them" in log_of(bad)
    assert not list(bad.glob("checkpoint-*"))


def test_loader_workers_change_nothing(recipe: Path, finished: Path, tmp_path: Path) -> None:
    assert train_in_child(recipe, tmp_path, "--num-loader-workers", "2", prepare=lambda: kill_before_step(6)) == -9
    assert train_in_child(recipe, tmp_path, "--num-loader-workers", "1") == 0
    assert weights_hash(tmp_path / LAST) == weights_hash(finished / LAST)


def test_one_folder_takes_one_run_at_a_time(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys, pathlib; from caspi.ops.training.run_lock import only_run_in\n"
    code += "with only_run_in(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"another training run \\(process {other.pid}\\)"), only_run_in(tmp_path, 0.0):
        pass
    other.communicate("")
    with only_run_in(tmp_path, 0.0):
        pass


def test_a_failed_upload_keeps_the_model_and_says_how_to_try_again(recipe: Path, tmp_path: Path) -> None:
    """HF_HUB_OFFLINE is set in all tests."""
    flags = ["--push-to-hub", "--hub-model-id", "someone/model"]
    assert train_in_child(recipe, tmp_path, *flags) == 0
    retry = f"caspi export --run-dir {tmp_path} --checkpoint final --push-to-hub --hub-model-id someone/model"
    assert retry in log_of(tmp_path)
    assert "HF_HUB_OFFLINE" in str(record_of(tmp_path)["hub_error"])
    assert record_of(tmp_path)["state"] == "done"
    assert (tmp_path / "model.safetensors").exists()
    assert not list(tmp_path.glob(".uploading-*"))


def test_an_upload_takes_the_model_files_and_nothing_else(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []

    def upload(folder: Path, repo_id: str, *, public: bool, **_: object) -> object:
        assert (repo_id, public) == ("someone/model", False)
        seen.append({path.name for path in folder.iterdir()})
        return SimpleNamespace(repo_url=SimpleNamespace(url="https://hub/someone/model"), oid="abc")

    monkeypatch.setattr(hub, "upload", upload)
    found = upload_final(finished, "someone/model")
    assert found == {"hub_url": "https://hub/someone/model", "hub_commit": "abc", "hub_error": None}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= seen[0]
    assert not seen[0] & {"run.json", "metrics.jsonl", "training.log", "trainer_state.json"}


def test_the_record_counts_training_time_over_all_starts(recipe: Path, tmp_path: Path) -> None:
    assert train_in_child(recipe, tmp_path, prepare=lambda: kill_before_step(5)) == -signal.SIGKILL
    first = record_of(tmp_path)["train_seconds"]
    assert train_in_child(recipe, tmp_path) == 0
    second = record_of(tmp_path)["train_seconds"]
    assert isinstance(first, float)
    assert isinstance(second, float)
    assert 0 < first < second
    assert train_in_child(recipe, tmp_path) == 0
    assert record_of(tmp_path)["train_seconds"] == second
