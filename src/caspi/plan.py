"""What a run will need, before renting: parameters per layer group and stage, memory, hours, dollars.

Counts and FLOPs are exact for the model's sizes. Rates are predictions: a roofline on the card's data sheet, or with
`--measure` on what this machine's GPU attains. Memory is that of the widest stage.
"""

import math
from typing import Any, NamedTuple

from caspi.config import Plan, Price, Recipe, Stage, Train
from caspi.model import footprint
from caspi.model.memory_footprint import Memory, StepSize, Trained, token_budget, training_memory
from caspi.model.step_time import Rates, step_time
from caspi.ops.cost import SECONDS_PER_HOUR, Gpu, find_gpu, find_price, price_table, recognise_gpu
from caspi.ops.offers import Need, Offer, as_json, cheapest_first, offer_of, show_offers
from caspi.ops.plan_table import show
from caspi.records import ExitCode, dump_json, read_manifest


class Corpus(NamedTuple):
    num_utterances: int
    mean_seconds: float
    source: str


class Setting(NamedTuple):
    """What all predictions share."""

    plan: Plan
    train: Train
    shape: footprint.Shape
    parts: dict[str, int]
    """Parameters by part of the model."""
    corpus: Corpus
    gpu: Gpu
    rates: Rates


def run(recipe: Recipe) -> int:
    plan = recipe.plan
    setting = setting_of(recipe, plan, rates_of(plan))
    table = price_table(plan.prices)
    price = given_price(plan) or find_price(plan.gpu, plan.num_gpus, table)
    stages = [predict_stage(stage, setting) for stage in recipe.train.stages]
    result = summary(setting, stages, price)
    result["offers"] = as_json(cheapest_first(offer(recipe, one) for one in table))
    if plan.json_output:
        print(dump_json(result, indent=2))
    else:
        show(result)
        show_offers(result["offers"], plan)
    return ExitCode.DONE if result["fits"] else ExitCode.NO


def setting_of(recipe: Recipe, plan: Plan, rates: Rates) -> Setting:
    train = recipe.train
    shape = footprint.shape_of(train.base_model)
    parts = footprint.parameters(shape, train.num_audio_top_layers, train.num_llm_top_layers)
    return Setting(plan, train, shape, parts, corpus_of(train, plan), find_gpu(plan.gpu), rates)


def rates_of(plan: Plan) -> Rates:
    """
    Raises:
        ValueError: the GPU is not known, or `--measure` is asked for without one.
    """
    if plan.measure:
        from caspi.model.gpu_rates import measure_rates

        return measure_rates()
    gpu = find_gpu(plan.gpu)
    return Rates(
        plan.product_fraction * gpu.peak_bf16_tflops * 1e12,
        plan.bandwidth_fraction * gpu.bandwidth_gb_per_second * 1e9,
        plan.microseconds_per_launch * 1e-6,
    )


def offer(recipe: Recipe, price: Price) -> Offer:
    """What the run would cost at this price, by the card's data sheet."""
    plan = recipe.plan.model_copy(update={"gpu": price.gpu, "num_gpus": price.num_gpus, "measure": False})
    setting = setting_of(recipe, plan, rates_of(plan))
    stages = [predict_stage(stage, setting) for stage in recipe.train.stages]
    training_hours = sum(stage["hours"] for stage in stages)
    need = Need(
        fits=fits(setting),
        training_hours=training_hours,
        paid_hours=training_hours + plan.evaluation_hours + plan.buffer_hours,
        num_steps=sum(stage["optimizer_steps"] for stage in stages),
    )
    return offer_of(price, need, plan, recipe.train.eval_steps)


def fits(setting: Setting) -> bool:
    return worst_memory(setting).total / 1e9 <= setting.plan.max_memory_fraction * setting.gpu.memory_gb


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


def predict_stage(stage: Stage, setting: Setting) -> dict[str, Any]:
    plan, train, parts, corpus = setting.plan, setting.train, setting.parts, setting.corpus
    groups = set(stage.learning_rates)
    unknown = groups - set(parts)
    if unknown:
        raise ValueError(f"stage {stage.name} names unknown layer groups: {', '.join(sorted(unknown))}")
    flops = footprint.training_flops(
        setting.shape,
        corpus.mean_seconds,
        plan.target_tokens_per_second * corpus.mean_seconds,
        groups,
        train.num_audio_top_layers,
        train.num_llm_top_layers,
    )
    rate = samples_per_second(setting, groups, flops)
    return {
        "name": stage.name,
        "epochs": stage.num_epochs,
        "groups": {name: {"parameters": parts[name], "lr": lr} for name, lr in stage.learning_rates.items()},
        "trained_parameters": sum(parts[name] for name in groups),
        "gflop_per_sample": flops / 1e9,
        "samples_per_second": rate,
        "mfu_fraction": rate * flops / (plan.num_gpus * setting.gpu.peak_bf16_tflops * 1e12),
        "official_samples_per_second": known_rate(setting, plan.official_mfu_fraction, flops),
        "optimizer_steps": stage.num_epochs
        * math.ceil(corpus.num_utterances / train.effective_batch_size(plan.num_gpus)),
        "hours": stage.num_epochs * corpus.num_utterances / rate / SECONDS_PER_HOUR,
    }


def known_rate(setting: Setting, mfu_fraction: float, flops: float) -> float:
    """Samples per second at a share of the peak rate."""
    return setting.plan.num_gpus * setting.gpu.peak_bf16_tflops * 1e12 * mfu_fraction / flops


def samples_per_second(setting: Setting, groups: set[str], flops: float) -> float:
    plan, train = setting.plan, setting.train
    if plan.mfu_fraction is not None:
        return known_rate(setting, plan.mfu_fraction, flops)
    num_clips = train.effective_batch_size(1)
    step = StepSize.of_clips(num_clips, setting.corpus.mean_seconds, plan.target_tokens_per_second)
    trained = trained_of(setting, groups)
    num_parts = math.ceil(step.tokens / max(1, budget_of(setting)))
    predicted = step_time(setting.shape, trained, step, num_clips * flops, num_parts, setting.rates)
    return plan.num_gpus * num_clips / predicted.seconds


def trained_of(setting: Setting, groups: set[str]) -> Trained:
    return Trained(
        trained_parameters=sum(setting.parts[name] for name in groups),
        all_parameters=sum(setting.parts.values()),
        num_audio_top=setting.train.num_audio_top_layers if "audio_top" in groups else 0,
        num_llm_top=setting.train.num_llm_top_layers if "llm_top" in groups else 0,
        num_gpus=setting.plan.num_gpus,
    )


def widest(setting: Setting) -> Trained:
    return trained_of(setting, set().union(*(stage.learning_rates for stage in setting.train.stages)))


def longest_clip(setting: Setting) -> StepSize:
    return StepSize.of_clips(1, setting.train.max_audio_length_seconds, setting.plan.target_tokens_per_second)


def budget_of(setting: Setting) -> int:
    """Positions computed at once: the recipe's, or what the card holds in the stage that trains most."""
    usable = setting.plan.max_memory_fraction * setting.gpu.memory_gb * 1e9
    return setting.train.token_budget or token_budget(setting.shape, widest(setting), longest_clip(setting), usable)


def worst_memory(setting: Setting) -> Memory:
    """Of a share of longest clips, in parts where the budget demands them; at least one clip at a time."""
    clip = longest_clip(setting)
    share = clip.scaled(setting.train.effective_batch_size(1))
    at_once = max(clip.tokens, min(share.tokens, budget_of(setting)))
    return training_memory(
        setting.shape, widest(setting), clip.scaled(at_once / clip.tokens), is_split=at_once < share.tokens
    )


def expected_samples_per_second(recipe: Recipe, device_name: str, num_gpus: int) -> float | None:
    """What the slowest stage is predicted to reach on these cards; None for a card that is not in the table."""
    gpu = recognise_gpu(device_name)
    if gpu is None:
        return None
    plan = recipe.plan.model_copy(update={"gpu": gpu, "num_gpus": num_gpus, "measure": False})
    setting = setting_of(recipe, plan, rates_of(plan))
    return float(min(predict_stage(stage, setting)["samples_per_second"] for stage in recipe.train.stages))


def gflop_per_sample(recipe: Recipe) -> dict[str, float]:
    """Of a mean utterance, by stage; the same on every card."""
    setting = setting_of(recipe, recipe.plan, rates_of(recipe.plan.model_copy(update={"measure": False})))
    return {stage.name: predict_stage(stage, setting)["gflop_per_sample"] for stage in recipe.train.stages}


def summary(setting: Setting, stages: list[dict[str, Any]], price: Price) -> dict[str, Any]:
    plan, memory = setting.plan, worst_memory(setting)
    training_hours = sum(stage["hours"] for stage in stages)
    paid_hours = training_hours + plan.evaluation_hours + plan.buffer_hours
    official = sum(
        stage["epochs"] * setting.corpus.num_utterances / stage["official_samples_per_second"] for stage in stages
    )
    return {
        "gpu": plan.gpu,
        "num_gpus": plan.num_gpus,
        "parameters": setting.parts,
        "total_parameters": sum(setting.parts.values()),
        "stages": stages,
        "memory_gb": {name: value / 1e9 for name, value in memory._asdict().items() if name != "is_split"}
        | {"peak": memory.total / 1e9},
        "token_budget": budget_of(setting),
        "gpu_memory_gb": setting.gpu.memory_gb,
        "fits": fits(setting),
        "corpus": setting.corpus._asdict(),
        "hours": {
            "training": training_hours,
            "evaluation": plan.evaluation_hours,
            "buffer": plan.buffer_hours,
            "paid": paid_hours,
            "official_script": official / SECONDS_PER_HOUR,
        },
        "usd": {"per_hour": price.usd_per_hour, "total": paid_hours * price.usd_per_hour},
        "price": price.model_dump(),
        "rates": setting.rates._asdict(),
        "basis": basis_of(plan),
    }


def basis_of(plan: Plan) -> str:
    if plan.mfu_fraction is not None:
        return f"given: {plan.mfu_fraction:.0%} of the peak rate"
    if plan.measure:
        return "predicted by a roofline from rates measured on this GPU"
    return "predicted by a roofline from the data sheet, not measured"
