"""Do the audit's intervals hold as often as they promise? Simulated audits without any audio.

    python -m benchmarks.interval_coverage --output /tmp/intervals

Two errors are kept apart. Sampling: which utterances were drawn; the interval must cover the share that the detector
flags in the whole manifest at the nominal rate, whatever the detector is worth. Detector: what it flags is not what is
bad; with a perfect one nothing changes, with a real one the share flagged is p * TPR + (1 - p) * FPR, and the interval
covers the truth p only as far as that is near.

Baseline: one binomial on the effective sample size of all domains together (Wilson; Clopper-Pearson below 5 hits).
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from benchmarks.measure import markdown_table, write_result
from caspi.config import Estimation
from caspi.speech.alignment.sampling import Interval, Stratum, clopper_pearson, estimate_share, wilson
from caspi.speech.seeds import seeded_generator

SETTINGS = Estimation()


class Design(NamedTuple):
    """Domains of a manifest: how many utterances, how many of them audited, the share that is bad."""

    name: str
    sizes: tuple[int, ...]
    audited: tuple[int, ...]
    bad: tuple[float, ...]
    utterances_per_group: int = 1
    """Recordings of so many utterances; more than 1: all utterances of a bad recording are bad."""


DESIGNS = (
    Design("the guide's rates, 2500 audited", (7000, 64_000, 2579), (1000, 1000, 500), (0.123, 0.038, 0.062)),
    Design("the guide's rates, 250 audited", (7000, 64_000, 2579), (100, 100, 50), (0.123, 0.038, 0.062)),
    Design("mostly noisy, 100 audited", (60_000, 12_000, 1579), (40, 40, 20), (0.10, 0.03, 0.06)),
    Design("mostly noisy, 300 audited", (60_000, 12_000, 1579), (120, 120, 60), (0.10, 0.03, 0.06)),
    Design("small corpus, a fifth audited", (400, 300, 60), (60, 60, 30), (0.10, 0.10, 0.10)),
    Design("half of it audited", (200, 160, 40), (80, 80, 40), (0.05, 0.05, 0.05)),
    Design("heavy domain with few hits", (3000, 66_000, 2000), (80, 80, 40), (0.20, 0.03, 0.10)),
    Design("heavy and nearly clean", (500, 9000, 500), (120, 120, 60), (0.30, 0.015, 0.10)),
    Design("clean", (3000, 3000, 3000), (120, 120, 60), (0.01, 0.01, 0.01)),
    Design("one domain", (70_000,), (300,), (0.10,)),
    Design("recordings of 5, all or none bad", (1000, 1000, 500), (200, 200, 100), (0.10, 0.10, 0.10), 5),
)
DETECTORS = {"perfect": (1.0, 0.0), "TPR .92, FPR .02": (0.92, 0.02), "TPR .92, FPR .04": (0.92, 0.04)}
"""Share flagged of bad and of good utterances."""


class Coverage(NamedTuple):
    design: str
    detector: str
    true_pct: float
    mean_pct: float
    """Mean point estimate."""
    flagged_share_held: float
    flagged_below_upper: float
    flagged_above_lower: float
    truth_held: float
    truth_below_upper: float
    mean_width: float
    pooled_held: float
    """The flagged share inside the baseline's interval, and below its upper end."""
    pooled_below_upper: float
    pooled_mean_width: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=4000, help="simulated audits for each line")
    parser.add_argument("--grouped-draws", type=int, default=300, help="the same where recordings are drawn: slow")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    console = Console(stderr=True)
    jobs = [(design, name) for name in DETECTORS for design in DESIGNS]
    found = []
    for design, name in track(jobs, "simulating", console=console, disable=not console.is_terminal):
        num_draws = arguments.draws if design.utterances_per_group == 1 else arguments.grouped_draws
        found.append(coverage(design, name, num_draws, arguments.seed))
        if not console.is_terminal:
            console.print(f"{len(found)} of {len(jobs)}: {found[-1].design}, {name}")
    print(coverage_table(found))
    write_result(
        arguments.output / "interval_coverage.json",
        {
            "draws": arguments.draws,
            "grouped_draws": arguments.grouped_draws,
            "seed": arguments.seed,
            "coverage": [row._asdict() for row in found],
        },
    )


def coverage(design: Design, detector: str, num_draws: int, seed: int) -> Coverage:
    """Simulate audits of one manifest."""
    rng = seeded_generator(seed, "coverage", f"{design} {detector}")
    bad, flagged = make_manifest(design, *DETECTORS[detector], rng)
    weights = np.array(design.sizes) / sum(design.sizes)
    truth, share = (100 * float(weights @ [domain.mean() for domain in kind]) for kind in (bad, flagged))
    draw = draw_items if design.utterances_per_group == 1 else draw_with_groups
    intervals, pooled = [], []
    for number in range(num_draws):
        strata = draw(design, flagged, rng)
        interval = estimate_share(strata, SETTINGS, number)
        intervals.append(interval[:3])
        pooled.append(pooled_limits(strata, interval))
    point, lower, upper = np.array(intervals).T
    pooled_lower, pooled_upper = np.array(pooled).T
    return Coverage(
        design=design.name,
        detector=detector,
        true_pct=truth,
        mean_pct=float(point.mean()),
        flagged_share_held=float(((lower <= share) & (share <= upper)).mean()),
        flagged_below_upper=float((share <= upper).mean()),
        flagged_above_lower=float((lower <= share).mean()),
        truth_held=float(((lower <= truth) & (truth <= upper)).mean()),
        truth_below_upper=float((truth <= upper).mean()),
        mean_width=float((upper - lower).mean()),
        pooled_held=float(((pooled_lower <= share) & (share <= pooled_upper)).mean()),
        pooled_below_upper=float((share <= pooled_upper).mean()),
        pooled_mean_width=float((pooled_upper - pooled_lower).mean()),
    )


def pooled_limits(strata: Mapping[str, Stratum], interval: Interval) -> tuple[float, float]:
    """The baseline's limits in percent."""
    share, alpha = interval.point / 100, 1 - interval.level
    if sum(int(stratum.hits.sum()) for stratum in strata.values()) < SETTINGS.korn_graubard_below:
        lower, upper = clopper_pearson(share * interval.n_eff, interval.n_eff, alpha)
    else:
        lower, upper = wilson(share, interval.n_eff, alpha)
    return 100 * min(lower, share), 100 * max(upper, share)


def draw_items(design: Design, flagged: Sequence[NDArray[np.bool_]], rng: np.random.Generator) -> dict[str, Stratum]:
    """A sample of each domain; only the number of hits matters where every item is a recording of its own."""
    strata = {}
    for index, (hits, size, count) in enumerate(zip(flagged, design.sizes, design.audited, strict=True)):
        num_hits = int(rng.hypergeometric(hits.sum(), size - hits.sum(), count))
        groups = tuple(f"{index}-{place}" for place in range(count))
        strata[str(index)] = Stratum(size, np.arange(count) < num_hits, groups)
    return strata


def draw_with_groups(
    design: Design, flagged: Sequence[NDArray[np.bool_]], rng: np.random.Generator
) -> dict[str, Stratum]:
    strata = {}
    for index, (hits, size, count) in enumerate(zip(flagged, design.sizes, design.audited, strict=True)):
        drawn = rng.permutation(size)[:count]
        groups = tuple(f"{index}-{place // design.utterances_per_group}" for place in drawn.tolist())
        strata[str(index)] = Stratum(size, hits[drawn], groups)
    return strata


def make_manifest(
    design: Design, detection: float, false_alarms: float, rng: np.random.Generator
) -> tuple[list[NDArray[np.bool_]], list[NDArray[np.bool_]]]:
    """Which utterances are bad and which would be flagged, by domain; a recording's utterances follow each other."""
    bad, flagged = [], []
    for size, share in zip(design.sizes, design.bad, strict=True):
        per_group = design.utterances_per_group
        groups = np.zeros(-(-size // per_group), dtype=bool)
        groups[: round(share * len(groups))] = True
        rng.shuffle(groups)
        truth = np.repeat(groups, per_group)[:size]
        bad.append(truth)
        flagged.append(np.where(truth, rng.random(size) < detection, rng.random(size) < false_alarms))
    return bad, flagged


def coverage_table(rows: Sequence[Coverage]) -> str:
    header = [
        "manifest",
        "detector",
        "bad %",
        "mean estimate %",
        "holds the flagged share (.90)",
        "below upper (.95)",
        "above lower (.95)",
        "holds the bad share",
        "bad share below upper",
        "width",
        "baseline holds the flagged share",
        "below its upper",
        "its width",
    ]
    lines = [
        [
            row.design,
            row.detector,
            f"{row.true_pct:.1f}",
            f"{row.mean_pct:.1f}",
            f"{row.flagged_share_held:.3f}",
            f"{row.flagged_below_upper:.3f}",
            f"{row.flagged_above_lower:.3f}",
            f"{row.truth_held:.3f}",
            f"{row.truth_below_upper:.3f}",
            f"{row.mean_width:.1f}",
            f"{row.pooled_held:.3f}",
            f"{row.pooled_below_upper:.3f}",
            f"{row.pooled_mean_width:.1f}",
        ]
        for row in rows
    ]
    return markdown_table(header, lines)


if __name__ == "__main__":
    main()
