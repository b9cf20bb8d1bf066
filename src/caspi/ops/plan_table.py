"""`caspi plan` on the console."""

from collections.abc import Mapping
from typing import Any


def show(result: Mapping[str, Any]) -> None:
    print(f"Model: {result['total_parameters']:,} parameters (the tied output matrix counted once)")
    for stage in result["stages"]:
        show_stage(stage, result["total_parameters"])
    corpus = result["corpus"]
    print(
        f"\nCorpus: {corpus['num_utterances']:,} utterances, mean {corpus['mean_seconds']:.1f} s ({corpus['source']})"
    )
    show_memory(result)
    show_costs(result)


def show_stage(stage: Mapping[str, Any], total: int) -> None:
    print(f"\nStage {stage['name']}: {stage['epochs']} epochs, {stage['optimizer_steps']:,} optimizer steps")
    for name, group in stage["groups"].items():
        print(f"  {name:12} LR {group['lr']:.0e}  {group['parameters']:>13,} parameters")
    trained = stage["trained_parameters"]
    print(f"  trained      {'':8}  {trained:>13,} ({trained / total:.1%})")
    print(
        f"  {stage['gflop_per_sample']:,.0f} GFLOP per sample, {stage['samples_per_second']:.1f} samples/s "
        f"({stage['mfu_fraction']:.0%} of the peak), {stage['hours']:.2f} h"
    )


def show_memory(result: Mapping[str, Any]) -> None:
    print(f"\nMemory per GPU ({result['gpu']}, {result['gpu_memory_gb']:.0f} GB), a step of the longest clips:")
    for name, gigabytes in result["memory_gb"].items():
        print(f"  {name:12}{gigabytes:6.1f} GB")
    print(f"  at most {result['token_budget']:,} positions at once; a larger step is split")
    print("  fits" if result["fits"] else "  does not fit: train fewer layers, or leave out the longest clips")


def show_costs(result: Mapping[str, Any]) -> None:
    rate = result["usd"]["per_hour"]
    hours, price = result["hours"], result["price"]
    print(f"\n{'Phase':12}{'Hours':>8}{'USD/h':>8}{'USD':>9}")
    print(f"{'audit':12}{'CPU':>8}{0:8.2f}{0:9.2f}")
    for phase in ("training", "evaluation", "buffer"):
        print(f"{phase:12}{hours[phase]:8.2f}{rate:8.2f}{hours[phase] * rate:9.2f}")
    print(f"{'total':12}{hours['paid']:8.2f}{'':8}{result['usd']['total']:9.2f}")
    official = hours["official_script"]
    print(f"The official script at the rate that Round 1 reached: {official:.1f} h of training, ${official * rate:.2f}")
    print(f"Rates are {result['basis']}; price: {price['provider']} {price['date']}, {price['source']}")
