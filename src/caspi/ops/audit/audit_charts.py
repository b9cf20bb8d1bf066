"""SVG charts of audit.html, in the colours of `templates/style.css`; every difference also shows without colour."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from markupsafe import Markup

from caspi.ops.charts import escape, line, svg

BAR_PCT = 25.0
"""Right end of the bar with the decision's thresholds."""
NUM_BINS = 30
DASHES = ("none", "9 4", "3 3", "9 3 2 3", "14 4", "1 3")
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


class Plot(NamedTuple):
    """A rectangle of the drawing and the values at its edges."""

    width: float
    height: float
    x_range: tuple[float, float] = (0.0, 1.0)
    y_range: tuple[float, float] = (0.0, 1.0)
    left: float = 46
    right: float = 14
    top: float = 12
    bottom: float = 38

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (self.width - self.left - self.right) * (value - low) / ((high - low) or 1.0)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return (
            self.height - self.bottom - (self.height - self.bottom - self.top) * (value - low) / ((high - low) or 1.0)
        )

    def axes(self, x_name: str, x_ticks: Sequence[float], y_ticks: Sequence[float], *, y_name: str = "") -> str:
        floor = self.height - self.bottom
        parts = [
            f'<path d="M{self.x(tick):.1f} {floor:.1f}v4" class="axis"/>'
            f'<text x="{self.x(tick):.1f}" y="{floor + 16:.1f}" text-anchor="middle">{tick + 0.0:g}</text>'
            for tick in x_ticks
        ]
        parts += [
            f'<path d="M{self.left} {self.y(tick):.1f}H{self.width - self.right}" class="axis"/>'
            f'<text x="{self.left - 6}" y="{self.y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
            for tick in y_ticks
        ]
        middle = (self.left + self.width - self.right) / 2
        parts.append(f'<text x="{middle:.1f}" y="{self.height - 5}" text-anchor="middle">{escape(x_name)}</text>')
        if y_name:
            height = (self.top + floor) / 2
            turned = f'transform="rotate(-90 11 {height:.1f})"'
            parts.append(f'<text x="11" y="{height:.1f}" text-anchor="middle" {turned}>{escape(y_name)}</text>')
        return "".join(parts)

    def svg(self, parts: Sequence[str], label: str) -> Markup:
        return svg(parts, label, self.width, self.height)


def verdict_bar(shares: Sequence[tuple[str, Mapping[str, Any]]], rule: Mapping[str, Any]) -> Markup:
    """Intervals in percent over the three bands of the decision.

    Args:
        shares: name and interval (`point`, `lower`, `upper`).
    """
    plot = Plot(880, 74 + 34 * len(shares), x_range=(0, BAR_PCT), left=170, right=22, top=26, bottom=40)
    proceed, stop = rule["proceed_below_pct"], rule["stop_above_pct"]
    floor = plot.height - plot.bottom
    parts = []
    for name, low, high in (("PROCEED", 0, proceed), ("CAUTION", proceed, stop), ("STOP", stop, BAR_PCT)):
        left, right = plot.x(min(low, BAR_PCT)), plot.x(min(high, BAR_PCT))
        parts.append(
            f'<rect x="{left:.1f}" y="{plot.top}" width="{right - left:.1f}" height="{floor - plot.top}" '
            f'class="band-{name.lower()}"/><text x="{(left + right) / 2:.1f}" y="17" text-anchor="middle">{name}</text>'
        )
    for mark in (proceed, stop):
        parts.append(f'<path d="M{plot.x(mark):.1f} {plot.top}V{floor}" class="mark"/>')
    parts += [
        f'<path d="M{plot.x(tick):.1f} {floor}v4" class="axis"/>'
        f'<text x="{plot.x(tick):.1f}" y="{floor + 17}" text-anchor="middle">{tick} %</text>'
        for tick in (0, 5, 10, 15, 20, 25)
    ]
    for index, (name, share) in enumerate(shares):
        y = plot.top + 24 + 34 * index
        parts.append(f'<text x="{plot.left - 10}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        parts.append(_whisker(plot, share, y, is_main=index == len(shares) - 1))
    parts.append(
        f'<text x="{(plot.left + plot.width - plot.right) / 2:.0f}" y="{plot.height - 4}" text-anchor="middle">'
        "share of the manifest that is low quality</text>"
    )
    said = "; ".join(f"{n}: {s['point']:.1f} % [{s['lower']:.1f}, {s['upper']:.1f}]" for n, s in shares)
    return plot.svg(parts, f"{said}. PROCEED below {proceed:g} %, STOP above {stop:g} %")


def _whisker(plot: Plot, share: Mapping[str, Any], y: float, *, is_main: bool) -> str:
    top = plot.x_range[1]
    low, high = (plot.x(min(share[end], top)) for end in ("lower", "upper"))
    width = 4 if is_main else 2.5
    beyond = f'<path d="M{high:.1f} {y - 6}l9 6l-9 6z" class="ink"/>' if share["upper"] > top else ""
    ends = f'<path d="M{low:.1f} {y - 7}v14M{high:.1f} {y - 7}v14" class="stroke" stroke-width="2"/>'
    point = f'<circle cx="{plot.x(min(share["point"], top)):.1f}" cy="{y}" r="{6 if is_main else 4.5}" class="ink"/>'
    return f'<path d="M{low:.1f} {y}H{high:.1f}" class="stroke" stroke-width="{width}"/>{ends}{beyond}{point}'


def domain_whisker(interval: Mapping[str, float], largest_pct: float, limits: Sequence[float]) -> Markup:
    """A small interval for a table cell, with the thresholds as marks."""
    plot = Plot(180, 22, x_range=(0, largest_pct), left=4, right=12, top=0, bottom=0)
    marks = [f'<path d="M{plot.x(mark):.1f} 2V20" class="mark"/>' for mark in limits if mark <= largest_pct]
    label = f"{interval['point']:.1f} % [{interval['lower']:.1f}, {interval['upper']:.1f}]"
    return plot.svg([*marks, _whisker(plot, interval, 11, is_main=False)], label)


def score_histograms(matched: Sequence[float], wrong: Sequence[float], domain: str) -> Markup:
    """Utterance scores of transcripts (filled) and of their decoys (outline)."""
    low, high = min(*matched, *wrong), max(*matched, *wrong)
    counts = [_binned(values, low, high) for values in (matched, wrong)]
    largest = max(max(one) for one in counts)
    plot = Plot(330, 200, x_range=(low, high), y_range=(0, largest), left=34)
    step = ((high - low) or 1.0) / NUM_BINS
    floor = plot.y(0)
    bars = [
        f'<rect x="{plot.x(low + i * step):.1f}" y="{plot.y(n):.1f}" '
        f'width="{plot.x(step) - plot.x(0) - 0.5:.1f}" height="{floor - plot.y(n):.1f}" class="fill-first"/>'
        for i, n in enumerate(counts[0])
        if n
    ]
    outline = [f"M{plot.x(low):.1f} {floor:.1f}"]
    for i, n in enumerate(counts[1]):
        outline.append(f"V{plot.y(n):.1f}H{plot.x(low + (i + 1) * step):.1f}")
    shape = f'<path d="{"".join(outline)}V{floor:.1f}" class="line-second" stroke-width="2"/>'
    axes = plot.axes("utterance score", _ticks(low, high), (0, largest))
    label = f"{domain}: scores of {len(matched)} transcripts and {len(wrong)} decoys"
    return plot.svg([axes, *bars, shape], label)


def roc_svg(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Markup:
    """How many transcripts pass (upwards) when so many decoys pass (rightwards), by domain."""
    plot = Plot(430, 330)
    parts = [plot.axes("share of decoys accepted", TICKS, TICKS, y_name="share of transcripts accepted")]
    parts.append(line([(plot.x(0), plot.y(0)), (plot.x(1), plot.y(1))], "var(--line)", 1.5))
    for index, (name, (matched, wrong)) in enumerate(curves.items()):
        points = " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in roc_points(matched, wrong))
        look = f'class="curve{index % 3}" stroke-dasharray="{DASHES[index % len(DASHES)]}"'
        parts.append(f'<polyline points="{points}" {look} fill="none" stroke-width="2.2"/>')
        y = plot.y(0.06) - 17 * (len(curves) - 1 - index)
        parts.append(f'<path d="M{plot.x(0.42):.1f} {y - 4:.1f}h30" {look} stroke-width="2.2"/>')
        parts.append(f'<text x="{plot.x(0.42) + 36:.1f}" y="{y:.1f}">{escape(name)}</text>')
    return plot.svg(parts, "ROC of transcripts against decoys by domain")


def roc_points(matched: Sequence[float], wrong: Sequence[float]) -> list[tuple[float, float]]:
    """(false acceptance, acceptance) for every threshold, from the strictest; ties move both at once."""
    points, accepted, false = [(0.0, 0.0)], 0, 0
    scores = sorted([(-score, True) for score in matched] + [(-score, False) for score in wrong])
    for position, (score, is_matched) in enumerate(scores):
        accepted, false = accepted + is_matched, false + (not is_matched)
        if position + 1 == len(scores) or scores[position + 1][0] != score:
            points.append((false / len(wrong), accepted / len(matched)))
    return points


def dose_svg(curve: Sequence[Mapping[str, float]]) -> Markup:
    """Mean coverage by share of foreign words."""
    plot = Plot(430, 330)
    points = [(plot.x(point["level"]), plot.y(point["mean_coverage"])) for point in curve]
    parts = [plot.axes("share of words replaced by foreign ones", TICKS, TICKS, y_name="mean coverage")]
    parts.append(line(points, "var(--first)", 2.5))
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="fill-first"/>' for x, y in points]
    return plot.svg(parts, "Mean alignment coverage falls as words are replaced")


def coverage_svg(values: Sequence[tuple[float, float]], quantiles: Mapping[str, float | None]) -> Markup:
    """Weighted histogram of coverage with its quantiles.

    Args:
        values: coverage and weight of each clip.
    """
    counts = [0.0] * NUM_BINS
    for value, weight in values:
        counts[min(NUM_BINS - 1, int(value * NUM_BINS))] += weight
    total = sum(counts) or 1.0
    shares = [100 * count / total for count in counts]
    plot = Plot(880, 250, y_range=(0, max(shares) or 1.0), top=34)
    parts = [plot.axes("alignment coverage", TICKS, (0, round(max(shares), 1)), y_name="% of manifest")]
    width = plot.x(1 / NUM_BINS) - plot.x(0) - 1
    parts += [
        f'<rect x="{plot.x(i / NUM_BINS):.1f}" y="{plot.y(share):.1f}" width="{width:.1f}" '
        f'height="{plot.y(0) - plot.y(share):.1f}" class="fill-first"><title>{share:.1f} %</title></rect>'
        for i, share in enumerate(shares)
        if share
    ]
    last = -100.0
    for name in sorted((n for n in quantiles if n != "mean"), key=lambda n: int(n[1:])):
        quantile = quantiles[name]
        if quantile is not None:
            x = plot.x(quantile)
            parts.append(f'<path d="M{x:.1f} {plot.top - 6}V{plot.y(0):.1f}" class="mark"/>')
            if x - last > 26:
                parts.append(f'<text x="{x:.1f}" y="{plot.top - 10}" text-anchor="middle">{name}</text>')
                last = x
    return plot.svg(parts, "Histogram of alignment coverage, weighted to the manifest, with quantiles")


SCATTER = Plot(880, 470, left=56, top=14, bottom=44)


def scatter_svg(points: Sequence[tuple[float, float, bool]], limits: Mapping[str, float]) -> Markup:
    """Coverage against speech coverage; passed clips are dots, flagged ones squares. One path for each kind."""
    plot = SCATTER
    x, y = plot.x(limits["min_coverage"]), plot.y(limits["min_speech_coverage"])
    right, floor = plot.x(1), plot.y(0)
    parts = [plot.axes("alignment coverage: share of the text that is in the audio", TICKS, TICKS)]
    turned = f'transform="rotate(-90 12 {(plot.top + floor) / 2:.0f})" text-anchor="middle"'
    parts.append(
        f'<text x="12" y="{(plot.top + floor) / 2:.0f}" {turned}>speech coverage: share of the audio in the text</text>'
    )
    parts.append(f'<path d="M{x:.1f} {plot.top}V{floor}M{plot.left} {y:.1f}H{right}" class="mark"/>')
    for name, left, top in (
        ("good", x + 8, plot.top + 16),
        ("text is not in the audio", plot.left + 8, plot.top + 16),
        ("audio is not in the text", x + 8, y + 18),
        ("wrong pair", plot.left + 8, y + 18),
    ):
        parts.append(f'<text x="{left:.1f}" y="{top:.1f}" class="quadrant">{name}</text>')
    for is_low in (False, True):
        dots = "".join(f"M{plot.x(a):.1f} {plot.y(b):.1f}h.01" for a, b, low in points if low == is_low)
        parts.append(f'<path d="{dots}" class="{"dots-bad" if is_low else "dots-good"}"/>')
    parts.append('<circle id="chosen" r="9" class="chosen" cx="-20" cy="-20"/>')
    return plot.svg(parts, "Scatter of alignment coverage and speech coverage; the samples below list the same clips")


def rates_svg(rates: Mapping[str, Sequence[float]]) -> Markup:
    """Letters per second of speech by domain: 5th to 95th percentile, box from 25th to 75th, bar at the median."""
    largest = max(_quantile(values, 0.95) for values in rates.values()) * 1.05 or 1.0
    plot = Plot(880, 46 + 34 * len(rates), x_range=(0, largest), left=170, top=6)
    parts = [plot.axes("letters per second of speech", _ticks(0, largest), ())]
    for index, (domain, values) in enumerate(rates.items()):
        y = plot.top + 18 + 34 * index
        p5, p25, p50, p75, p95 = (plot.x(_quantile(values, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95))
        parts.append(f'<text x="{plot.left - 10}" y="{y + 4}" text-anchor="end">{escape(domain)}</text>')
        parts.append(f'<path d="M{p5:.1f} {y}H{p95:.1f}" class="stroke" stroke-width="2"/>')
        parts.append(f'<rect x="{p25:.1f}" y="{y - 9}" width="{p75 - p25:.1f}" height="18" class="box"/>')
        parts.append(f'<path d="M{p50:.1f} {y - 9}v18" class="stroke" stroke-width="3"/>')
    return plot.svg(parts, "Letters per second of speech by domain")


def _binned(values: Sequence[float], low: float, high: float) -> list[int]:
    counts = [0] * NUM_BINS
    for value in values:
        counts[min(NUM_BINS - 1, int(NUM_BINS * (value - low) / ((high - low) or 1.0)))] += 1
    return counts


def _ticks(low: float, high: float) -> list[float]:
    """Four or five round values inside a range."""
    step = (high - low) / 4 or 1.0
    power = 10.0 ** _magnitude(step)
    size = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.7)
    first = -(-low // size) * size + 0.0
    return [round(value, 10) for value in accumulate([first, *([size] * int((high - first) // size))])]


def _magnitude(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def _quantile(values: Sequence[float], fraction: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(fraction * (len(ordered) - 1)))]
