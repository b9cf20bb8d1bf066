"""Evaluation while training gives the same numbers to the bit with any number of processes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_training import build_inputs

from caspi.config import load_recipe
from caspi.model.training import dev_set
from caspi.model.training.build import build_run, load_data, open_quarantine
from caspi.model.training.parts import PackedParts, PaddedParts
from caspi.model.training.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("inputs")
    recipe = load_recipe(build_inputs(folder))
    few_at_once = {"output_dir": folder / "out", "max_wer_utterances": 26, "eval_batch_size": 3, "max_new_tokens": 12}
    few_at_once |= {"token_budget": 150}
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update=few_at_once)})
    split = load_data(recipe.train)
    everything = split._replace(evaluation=[*split.training, *split.evaluation])
    quarantine = open_quarantine(recipe.train, is_resumed=False)
    store: Any = SimpleNamespace()
    run = build_run(recipe, everything, quarantine, store, SimpleNamespace(exit_code=0), world_size=1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in run.model.parameters():  # a model whose words depend on every bit of what it hears
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return run


def evaluate_as(run: Run, world_size: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the first of several processes finds; what the others send is computed before."""
    sent: list[list[Any]] = []
    for rank in reversed(range(world_size)):
        calls: list[Any] = []

        def all_gather(thing: Any, rank: int = rank, calls: list[Any] = calls) -> list[Any]:
            calls.append(thing)
            return [thing, *(others[len(calls) - 1] for others in sent)] if rank == 0 else [thing]

        with monkeypatch.context() as patch:
            patch.setattr(dev_set, "process_rank", lambda rank=rank: rank)
            patch.setattr(dev_set, "num_processes", lambda: world_size)
            patch.setattr(dev_set, "all_gather_objects", all_gather)
            if rank == 0:
                metrics = run.dev_set.evaluate(run.model)
            else:
                patch.setattr(dev_set.DevSet, "rate", lambda *_: 0.0)
                run.dev_set.evaluate(run.model)
                sent.insert(0, calls)
    return {name: value for name, value in metrics.items() if name != "eval_runtime"}


def test_evaluation_is_the_same_to_the_bit_with_one_two_and_three_processes(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = evaluate_as(run, 1, monkeypatch)
    assert {"eval_loss", "eval_wer", "eval_cer", "eval_wer_kan_clean", "eval_wer_whatsapp_noisy"} == alone.keys()
    assert alone["eval_wer"] > 0
    for world_size in (2, 3):
        assert evaluate_as(run, world_size, monkeypatch) == alone


def test_every_process_has_its_batches_and_none_is_computed_twice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    for rank in range(4):
        monkeypatch.setattr(dev_set, "process_rank", lambda rank=rank: rank)
        monkeypatch.setattr(dev_set, "num_processes", lambda: 4)
        found += run.dev_set.transcribe_share(run.model)
    assert sorted(found) == run.dev_set.transcribed


def test_the_packed_loss_is_the_padded_one_however_it_is_cut(run: Run) -> None:
    padded = PaddedParts(run.encoder, 5)
    packed = run.parts.to_evaluate(0)
    assert isinstance(packed, PackedParts)
    found = []
    for parts in (
        padded,
        packed,
        PackedParts(run.encoder, packed.packer, 200),
        PackedParts(run.encoder, packed.packer, 9),
    ):
        run.dev_set.parts = parts
        found.append(run.dev_set.loss(run.model))
    run.dev_set.parts = packed
    assert found[1:] == pytest.approx(found[:1] * 3, rel=1e-6)
    assert [len(group) for group in packed.groups([60.0] * 5)] == [2, 2, 1]
