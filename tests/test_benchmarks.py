"""Baselines compute what they claim, and the script for one GPU runs: rehearsed here on a tiny model without one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.baselines import official_loss, stock_loss
from benchmarks.clip_files import write_clips
from benchmarks.gpu_training import Bench, measure_steps, steps_of_clips, subjects_of, workloads
from benchmarks.models import TINY
from benchmarks.official_collator import OfficialCollator
from benchmarks.workload import clip_seconds
from caspi.model.tiny_models import build_tiny_asr
from caspi.speech.synthetic.synth import lexicon

NOT_ON_A_BARE_GPU_MACHINE = ("pydantic", "tyro", "soundfile", "soxr", "jiwer", "datasets", "openai", "wandb")


def test_the_official_collator_supervises_transcripts_and_ends_and_both_its_losses_agree(tmp_path: Path) -> None:
    model, processor = build_tiny_asr(0)
    clips = write_clips(tmp_path, clip_seconds(4, 3.0, seed=0).tolist(), list(lexicon(50)), 0, "flac")
    batch = OfficialCollator(processor, "Hebrew")(clips)
    supervised = [processor.tokenizer.decode(row[row >= 0]) for row in batch["labels"]]
    assert supervised == [clip.text + "<|im_end|>" for clip in clips]
    num_targets = int((batch["labels"][:, 1:] >= 0).sum())
    stock, official = stock_loss(model, batch, num_targets), official_loss(model, batch, num_targets)
    torch.testing.assert_close(official, stock, rtol=1e-5, atol=0)


def test_every_way_to_compute_a_step_trains_the_same_model_to_the_same_loss() -> None:
    losses = {}
    for number in range(5):
        bench = Bench(TINY, "cpu", num_audio_top=1, num_llm_top=1)
        clips = steps_of_clips(bench, workloads(2)["lognormal 5.7 s"])[0]
        subject = subjects_of(bench, token_budget=1 << 40)[number]
        num_targets = sum(clip.num_targets for clip in clips)
        parts = [subject.loss_of(bench.model, bench.moved(one), num_targets) for one in subject.micro_batches(clips)]
        losses[subject.name] = float(sum(part.detach() for part in parts))
    assert len(losses) == 5
    assert list(losses.values()) == pytest.approx([losses["ours, packed"]] * 5, rel=1e-5)


def test_steps_are_measured_one_by_one_for_every_subject() -> None:
    bench = Bench(TINY, "cpu", num_audio_top=1, num_llm_top=1)
    steps = steps_of_clips(bench, workloads(1)["lognormal 5.7 s"])
    found = measure_steps(bench, subjects_of(bench, 1 << 40)[:2], steps, num_rounds=2, seconds_limit=60)
    assert [len(measured.seconds) for measured in found.values()] == [2 * len(steps)] * 2
    assert all(
        host <= whole for one in found.values() for host, whole in zip(one.host_seconds, one.seconds, strict=True)
    )


def test_the_gpu_script_can_be_rehearsed_and_saves_after_every_part(tmp_path: Path) -> None:
    saved = []
    result = gpu.run(
        ("limits", "attention", "optimizer", "switch", "evaluation"),
        gpu.REHEARSAL,
        "cpu",
        lambda so_far: saved.append(set(so_far)),
    )
    assert "attention" not in saved[0]
    assert saved[-1] == set(result)
    assert result["switch"]["loss_after"] == pytest.approx(result["switch"]["loss_before"], rel=1e-6)
    assert result["switch"]["parameters_with_moments"] > 0
    losses = result["evaluation"]["loss_values"]
    assert losses["packed"] == pytest.approx(losses["padded"], rel=1e-5)
    assert "## switch" in gpu.markdown(result)


def test_the_gpu_script_needs_nothing_but_torch_and_transformers() -> None:
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in NOT_ON_A_BARE_GPU_MACHINE)
    source = f"import sys; {blocked}import benchmarks.gpu; print('imported')"
    found = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert found.stdout == "imported\n", found.stderr


def test_without_a_gpu_the_script_says_how_to_rehearse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "--tiny rehearses without one" in capsys.readouterr().err
