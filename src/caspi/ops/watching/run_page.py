"""run.html: the course of a training run for readers, self-contained; every text in it is foreign and escaped."""

from caspi.ops.pages import environment, style
from caspi.ops.watching.run_charts import Chart, chart_svg, series
from caspi.ops.watching.run_metrics import DOMAIN_KEY, RATE_KEY, Entry, RunFiles, course_of
from caspi.ops.watching.run_terminal import rows
from caspi.ops.watching.run_view import RunView

STATE_TONES = {"finished": "good", "training": "good", "starting": "unsure", "interrupted": "unsure"}
"""Others are bad."""


def run_page(run: RunFiles, view: RunView) -> str:
    course = course_of(run)
    bands = course.bands if course else []
    raised = run.metrics.alerts()
    evaluations = run.metrics.evaluations()
    return environment().get_template("run.html").render(
        style=style(),
        view=view,
        facts=[(name, text) for name, text in rows(view) if name != "state"],
        tone=STATE_TONES.get(view.state, "bad"),
        charts=[(chart.title, chart_svg(chart, bands, raised, view.step)) for chart in charts(run)],
        evaluations=evaluations,
        domains=keys_with(evaluations, DOMAIN_KEY),
        gate=run.record.gate,
        versions=run.record.versions,
    )  # fmt: skip


def charts(run: RunFiles) -> list[Chart]:
    """Those for which the run has written values."""
    training, evaluations = run.metrics.training(), run.metrics.evaluations()
    rates = [series(training, key, key.removeprefix(RATE_KEY)) for key in full_keys(training, RATE_KEY)]
    domains = [series(evaluations, key, key.removeprefix(DOMAIN_KEY)) for key in full_keys(evaluations, DOMAIN_KEY)]
    found = [
        Chart("Loss", [series(training, "loss", "training"), series(evaluations, "eval_loss", "evaluation")], plain),
        Chart("Evaluation WER by domain", [series(evaluations, "eval_wer", "all"), *domains], percent),
        Chart("Learning rate by layer group", rates, plain),
        Chart("Throughput, samples per second", [series(training, "samples_per_second", "samples/s")], plain),
        Chart(
            "Share of the time spent waiting for audio", [series(training, "data_wait_fraction", "waiting")], percent
        ),
        Chart("Peak GPU memory, GiB", [series(training, "gpu_memory_gib", "fullest GPU")], plain),
        Chart("Largest gradient norm before clipping", [series(training, "grad_norm_max", "gradient norm")], plain),
    ]
    drawn = [chart._replace(lines=[line for line in chart.lines if line.points]) for chart in found]
    return [chart for chart in drawn if chart.lines]


def full_keys(entries: list[Entry], prefix: str) -> list[str]:
    return sorted({key for entry in entries for key in entry if key.startswith(prefix)})


def keys_with(entries: list[Entry], prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in full_keys(entries, prefix)]


def plain(value: float) -> str:
    return f"{value:.3g}"


def percent(value: float) -> str:
    return f"{100 * value:.3g} %"
