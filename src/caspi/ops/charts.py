"""Small SVG charts for the pages, in the colours of `templates/style.css`."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 880, 260, 56, 34, 16
"""User units of the drawing and its margins."""


def comparison_svg(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Two bars per test set; the whisker on each is its bootstrap interval."""
    rounds = ("round1", "round2")
    largest = max(row[f"{one}_high"] or row[f"{one}_wer"] for row in rows for one in rounds) or 1.0
    slot = (WIDTH - LEFT) / len(rows)
    parts = [y_axis(largest)]
    for index, row in enumerate(rows):
        x = LEFT + index * slot + 0.18 * slot
        for side, (name, color) in enumerate((("round1_wer", "var(--first)"), ("round2_wer", "var(--second)"))):
            top, left = scale(row[name], largest), x + side * 0.33 * slot
            parts.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{0.3 * slot:.1f}" height="{HEIGHT - BOTTOM - top:.1f}" '
                f'fill="{color}"><title>{escape(row["test_set"])} {name[:6]}: {100 * row[name]:.1f} %</title></rect>'
            )
        for side, name in enumerate(rounds):
            if row[f"{name}_low"] is not None:
                center = x + (0.15 + side * 0.33) * slot
                low, high = (scale(row[f"{name}_{end}"], largest) for end in ("low", "high"))
                parts.append(f'<path d="M{center:.1f} {low:.1f}V{high:.1f}" stroke="var(--ink)" stroke-width="2"/>')
        parts.append(
            f'<text x="{x + 0.32 * slot:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{escape(row["test_set"])}</text>'
        )
    parts.append(legend([("Round 1", "var(--first)"), ("Round 2", "var(--second)")]))
    return svg(parts, "WER of Round 1 and Round 2 by test set, in percent")


def training_svg(
    history: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]], switches: Sequence[int]
) -> Markup:
    """eval_wer over steps, with the training loss behind it on its own scale."""
    last = max(entry["step"] for entry in history)
    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    rates = [(entry["step"], entry["eval_wer"]) for entry in evaluations]
    largest_loss, largest_rate = max(loss for _, loss in losses), max(rate for _, rate in rates) or 1.0
    parts = [y_axis(largest_rate)]
    for step in switches:
        x = x_of(step, last)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" class="axis" stroke-dasharray="4 4"/>')
        parts.append(f'<text x="{x + 4:.1f}" y="{TOP + 10}">strategy A</text>')
    parts.append(line([(x_of(s, last), scale(v, largest_loss)) for s, v in losses], "var(--soft)", 1))
    points = [(x_of(s, last), scale(v, largest_rate)) for s, v in rates]
    parts.append(line(points, "var(--second)", 2.5))
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="var(--second)"/>' for x, y in points]
    parts.append(f'<text x="{WIDTH - 4}" y="{HEIGHT - 14}" text-anchor="end">step {last}</text>')
    loss_name = f"training loss (0 to {largest_loss:.1f})"
    parts.append(legend([("eval_wer", "var(--second)"), (loss_name, "var(--soft)")]))
    return svg(parts, "Evaluation WER in percent and training loss over optimizer steps")


def legend(entries: Sequence[tuple[str, str]]) -> str:
    spans = "  ".join(f'<tspan style="fill:{color}">{escape(name)}</tspan>' for name, color in entries)
    return f'<text x="{LEFT + 8}" y="12" xml:space="preserve">{spans}</text>'


def y_axis(largest: float) -> str:
    parts = []
    for fraction in (0.0, 0.5, 1.0):
        y = scale(fraction * largest, largest)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH}" class="axis"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{100 * fraction * largest:.0f} %</text>')
    return "".join(parts)


def scale(value: float, largest: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP - 8) * value / largest


def x_of(step: int, last: int) -> float:
    return LEFT + (WIDTH - LEFT - 8) * step / last


def line(points: Sequence[tuple[float, float]], color: str, width: float) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"/>'


def escape(text: str) -> str:
    return str(Markup.escape(text))


def svg(parts: Sequence[str], label: str, width: float = WIDTH, height: float = HEIGHT) -> Markup:
    body = "".join(parts)
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{body}</svg>')
