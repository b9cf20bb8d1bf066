"""SVG line charts of a run over its optimizer steps, in the colours of `templates/run.html`; no script."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from caspi.ops.charts import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, escape, svg
from caspi.ops.watching.run_metrics import Band, Entry

DASHES = ("none", "9 4", "3 3", "9 3 2 3", "14 4", "1 3")
"""Of the lines in order, so that they differ without colour, and a line under another one is seen."""
NUM_COLORS = len(DASHES)
"""`--line-0` and so on."""
NUM_TICKS = 5
RIGHT = 24
LEGEND_HEIGHT = 22
TOP_OF_PLOT = TOP + LEGEND_HEIGHT
MAX_DOTS = 40
"""Lines of few points, such as evaluations, show each."""
Format = Callable[[float], str]


class Series(NamedTuple):
    name: str
    points: list[tuple[int, float]]
    """Steps done and value."""


class Chart(NamedTuple):
    title: str
    lines: list[Series]
    format: Format


class Frame(NamedTuple):
    """Scales of a chart: steps to x, values to y; both begin at 0."""

    last_step: int
    largest: float

    def x(self, step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / self.last_step

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP_OF_PLOT) * value / self.largest


def series(entries: Sequence[Entry], key: str, name: str) -> Series:
    return Series(name, [(entry["step"], float(entry[key])) for entry in entries if entry.get(key) is not None])


def chart_svg(chart: Chart, bands: Sequence[Band], alerts: Sequence[Entry], last_step: int) -> Markup:
    """All lines of a chart over the stages, with a mark where training raised an alert."""
    values = [value for line in chart.lines for _, value in line.points]
    ticks = round_ticks(max(values))
    frame = Frame(max(last_step, 1), ticks[-1])
    parts = [band_svg(band, index, frame) for index, band in enumerate(bands) if band.first_step < last_step]
    parts += [value_axis(ticks, frame, chart.format), step_axis(frame)]
    parts += [alert_svg(alert, frame) for alert in alerts]
    parts += [line_svg(line, index, frame, chart.format) for index, line in enumerate(chart.lines)]
    parts.append(legend_svg(chart.lines))
    return svg(parts, chart.title)


def round_ticks(largest: float) -> list[float]:
    """0 to at least `largest` in at most 6 steps of 1, 2 or 5 times a power of ten."""
    if largest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(largest / NUM_TICKS))
    size = next(factor * power for factor in (1, 2, 5, 10) if factor * power * NUM_TICKS >= largest * (1 - 1e-9))
    return [index * size for index in range(math.ceil(largest / size - 1e-9) + 1)]


def band_svg(band: Band, index: int, frame: Frame) -> str:
    left, right = frame.x(band.first_step), frame.x(min(band.last_step, frame.last_step))
    size = f'width="{right - left:.1f}" height="{HEIGHT - BOTTOM - TOP_OF_PLOT}" class="band{index % 2}"'
    title = f"stage {escape(band.name)}: steps {band.first_step} to {band.last_step}"
    return (
        f'<rect x="{left:.1f}" y="{TOP_OF_PLOT}" {size}><title>{title}</title></rect>'
        f'<text x="{left + 5:.1f}" y="{TOP_OF_PLOT + 13}">stage {escape(band.name)}</text>'
    )


def value_axis(ticks: Sequence[float], frame: Frame, text: Format) -> str:
    return "".join(
        f'<path d="M{LEFT} {frame.y(tick):.1f}H{WIDTH - RIGHT}" class="axis"/>'
        f'<text x="{LEFT - 6}" y="{frame.y(tick) + 4:.1f}" text-anchor="end">{escape(text(tick))}</text>'
        for tick in ticks
    )


def step_axis(frame: Frame) -> str:
    steps = [step for step in round_ticks(frame.last_step) if step <= frame.last_step]
    texts = (f'<text x="{frame.x(one):.1f}" y="{HEIGHT - 14}" text-anchor="middle">{one:.0f}</text>' for one in steps)
    return "".join(texts)


def alert_svg(alert: Entry, frame: Frame) -> str:
    x = frame.x(min(alert["step"], frame.last_step))
    title = f"{alert['alert']} at step {alert['step']}: {alert.get('message', '')}"
    return f'<path d="M{x:.1f} {TOP_OF_PLOT}V{HEIGHT - BOTTOM}" class="alert"><title>{escape(title)}</title></path>'


def line_svg(line: Series, index: int, frame: Frame, text: Format) -> str:
    points = [(frame.x(step), frame.y(value)) for step, value in line.points]
    look = index % NUM_COLORS
    style = f'class="line{look}" stroke-dasharray="{DASHES[look]}"'
    parts = [f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" {style}/>']
    if len(points) <= MAX_DOTS:
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="dot{index % NUM_COLORS}">'
            f"<title>{escape(line.name)} at step {step}: {escape(text(value))}</title></circle>"
            for (x, y), (step, value) in zip(points, line.points, strict=True)
        ]
    return "".join(parts)


def legend_svg(lines: Sequence[Series]) -> str:
    spans = "   ".join(
        f'<tspan class="name{index % NUM_COLORS}">— {escape(line.name)}</tspan>' for index, line in enumerate(lines)
    )
    return f'<text x="{LEFT}" y="14" xml:space="preserve">{spans}</text>'
