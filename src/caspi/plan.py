"""What a run will need, before renting: parameters per layer group and stage, memory, hours, dollars.

Counts and FLOPs are exact for the model's sizes; rates are predictions (`plan.mfu_fraction`) until a run has measured
them. Memory is that of the widest stage at the longest admitted clips.
"""

import math
from typing import Any, NamedTuple

from caspi.config import Plan, Price, Recipe, Stage, Train
from caspi.model import footprint
from caspi.ops.cost import SECONDS_PER_HOUR, Gpu, find_gpu, find_price, price_table, recognise_gpu
from caspi.records import ExitCode, dump_json, read_manifest


class Corpus(NamedTuple):
    num_utterances: int
    mean_seconds: float
    source: str


def run(recipe: Recipe) -> int:
    plan, train = recipe.plan, recipe.train
    gpu = find_gpu(plan.gpu)
    price = given_price(plan) or find_price(plan.gpu, plan.num_gpus, price_table(plan.prices))
    shape = footprint.shape_of(train.base_model)
    corpus = corpus_of(train, plan)
    parts = footprint.parameters(shape, train.num_audio_top_layers, train.num_llm_top_layers)
    stages = [predict_stage(stage, shape, parts, corpus, plan, train, gpu) for stage in train.stages]
    memory = worst_memory(shape, parts, plan, train)
    result = summary(parts, stages, memory, corpus, plan, gpu, price)
    print(dump_json(result, indent=2)) if plan.json_output else show(result, plan, price)
    return ExitCode.DONE if result["fits"] else ExitCode.NO


def given_price(plan: Plan) -> Price | None:
    if plan.price is None:
        return None
    return Price(
        provider="given", gpu=plan.gpu, num_gpus=plan.num_gpus, usd_per_hour=plan.price, date="today", source="--price"
    )


def corpus_of(train: Train, plan: Plan) -> Corpus:
    """The manifest's training utterances, or the recipe's figures while there is no manifest."""
    if not train.manifest.exists():
        return Corpus(plan.num_utterances, plan.mean_duration_seconds, "assumed: no manifest yet")
    seconds = [u.duration for u in read_manifest(train.manifest) if u.duration <= train.max_audio_length_seconds]
    if not seconds:
        raise ValueError(f"{train.manifest} holds no utterance of at most {train.max_audio_length_seconds} s")
    return Corpus(len(seconds), sum(seconds) / len(seconds), str(train.manifest))


def predict_stage(
    stage: Stage, shape: footprint.Shape, parts: dict[str, int], corpus: Corpus, plan: Plan, train: Train, gpu: Gpu
) -> dict[str, Any]:
    trained = set(stage.learning_rates)
    unknown = trained - set(parts)
    if unknown:
        raise ValueError(f"stage {stage.name} names unknown layer groups: {', '.join(sorted(unknown))}")
    target_tokens = plan.target_tokens_per_second * corpus.mean_seconds
    flops = footprint.training_flops(
        shape, corpus.mean_seconds, target_tokens, trained, train.num_audio_top_layers, train.num_llm_top_layers
    )
    samples_per_second = plan.num_gpus * gpu.peak_bf16_tflops * 1e12 * plan.mfu_fraction / flops
    batch = train.effective_batch_size(plan.num_gpus)
    return {
        "name": stage.name,
        "epochs": stage.num_epochs,
        "groups": {name: {"parameters": parts[name], "lr": lr} for name, lr in stage.learning_rates.items()},
        "trained_parameters": sum(parts[name] for name in trained),
        "gflop_per_sample": flops / 1e9,
        "samples_per_second": samples_per_second,
        "optimizer_steps": stage.num_epochs * math.ceil(corpus.num_utterances / batch),
        "hours": stage.num_epochs * corpus.num_utterances / samples_per_second / SECONDS_PER_HOUR,
    }


def expected_samples_per_second(recipe: Recipe, device_name: str, num_gpus: int) -> float | None:
    """What the slowest stage is predicted to reach on these cards; None for a card that is not in the table."""
    gpu = recognise_gpu(device_name)
    if gpu is None:
        return None
    plan, train = recipe.plan.model_copy(update={"gpu": gpu, "num_gpus": num_gpus}), recipe.train
    shape = footprint.shape_of(train.base_model)
    parts = footprint.parameters(shape, train.num_audio_top_layers, train.num_llm_top_layers)
    corpus = corpus_of(train, plan)
    stages = [predict_stage(stage, shape, parts, corpus, plan, train, find_gpu(gpu)) for stage in train.stages]
    return float(min(stage["samples_per_second"] for stage in stages))


def worst_memory(shape: footprint.Shape, parts: dict[str, int], plan: Plan, train: Train) -> footprint.Memory:
    """Memory of the stage that trains most, for a micro-batch of the longest clips."""
    trained = set().union(*(stage.learning_rates for stage in train.stages))
    audio_tokens = round(footprint.AUDIO_TOKENS_PER_SECOND * train.max_audio_length_seconds)
    text_tokens = plan.target_tokens_per_second * train.max_audio_length_seconds
    tokens = round(audio_tokens + text_tokens + footprint.PROMPT_TOKENS)
    return footprint.training_memory(
        shape,
        sum(parts[name] for name in trained),
        sum(parts.values()),
        train.batch_size * tokens,
        train.batch_size * audio_tokens,
        train.num_audio_top_layers if "audio_top" in trained else 0,
        train.num_llm_top_layers if "llm_top" in trained else 0,
        plan.num_gpus,
    )


def summary(
    parts: dict[str, int], stages: list[dict[str, Any]], memory: footprint.Memory, corpus: Corpus, plan: Plan, gpu: Gpu,
    price: Price,
) -> dict[str, Any]:  # fmt: skip
    training_hours = sum(stage["hours"] for stage in stages)
    paid_hours = training_hours + plan.evaluation_hours + plan.buffer_hours
    return {
        "parameters": parts,
        "total_parameters": sum(parts.values()),
        "stages": stages,
        "memory_gb": {name: value / 1e9 for name, value in memory._asdict().items()} | {"total": memory.total / 1e9},
        "gpu_memory_gb": gpu.memory_gb,
        "fits": memory.total / 1e9 <= plan.max_memory_fraction * gpu.memory_gb,
        "corpus": corpus._asdict(),
        "hours": {
            "training": training_hours,
            "evaluation": plan.evaluation_hours,
            "buffer": plan.buffer_hours,
            "paid": paid_hours,
        },
        "usd": {"per_hour": price.usd_per_hour, "total": paid_hours * price.usd_per_hour},
        "price": price.model_dump(),
        "basis": f"predicted at {plan.mfu_fraction:.0%} of the peak rate",
    }


def show(result: dict[str, Any], plan: Plan, price: Price) -> None:
    total = result["total_parameters"]
    print(f"Model: {total:,} parameters (the tied output matrix counted once)")
    for stage in result["stages"]:
        share = stage["trained_parameters"] / total
        print(f"\nStage {stage['name']}: {stage['epochs']} epochs, {stage['optimizer_steps']:,} optimizer steps")
        for name, group in stage["groups"].items():
            print(f"  {name:12} LR {group['lr']:.0e}  {group['parameters']:>13,} parameters")
        print(f"  trained      {'':8}  {stage['trained_parameters']:>13,} ({share:.1%})")
        rate, gflop = stage["samples_per_second"], stage["gflop_per_sample"]
        print(f"  {gflop:,.0f} GFLOP per sample, {rate:.1f} samples/s predicted, {stage['hours']:.1f} h")
    corpus = result["corpus"]
    print(
        f"\nCorpus: {corpus['num_utterances']:,} utterances, mean {corpus['mean_seconds']:.1f} s ({corpus['source']})"
    )
    print(f"\nMemory per GPU ({plan.gpu}, {result['gpu_memory_gb']:.0f} GB), longest clips:")
    for name, gigabytes in result["memory_gb"].items():
        print(f"  {name:12}{gigabytes:6.1f} GB")
    verdict = (
        "fits"
        if result["fits"]
        else "does not fit: use --batch-size 1 --gradient-accumulation-steps 32, or fewer layers"
    )
    print(f"  {verdict}")
    rate = price.usd_per_hour
    print(f"\n{'Phase':12}{'Hours':>8}{'USD/h':>8}{'USD':>9}")
    print(f"{'audit':12}{'CPU':>8}{0:8.2f}{0:9.2f}")
    for phase in ("training", "evaluation", "buffer"):
        hours = result["hours"][phase]
        print(f"{phase:12}{hours:8.1f}{rate:8.2f}{hours * rate:9.2f}")
    print(f"{'total':12}{result['hours']['paid']:8.1f}{'':8}{result['usd']['total']:9.2f}")
    print(f"Rates are {result['basis']}; price: {price.provider} {price.date}, {price.source}")
