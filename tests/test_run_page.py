"""run.html: every figure of the run, nothing that runs or loads, and a browser that agrees."""

import html.parser
import itertools
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from caspi.cli import main
from caspi.ops.watching.run_charts import round_ticks

REAL_RUN = Path(__file__).parent / "data" / "watch_run"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
EVIL = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"


class Elements(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for one, attributes in self.tags if one == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the real run, with hostile text wherever a run can bring text."""
    folder = tmp_path_factory.mktemp("page") / "run"
    shutil.copytree(REAL_RUN, folder)
    run = json.loads((folder / "run.json").read_text())
    run["stage"] = run["wandb_url"] = run["gate"]["accepted_risk"] = EVIL
    run["recipe"]["train"]["stages"][0]["name"] = EVIL
    run["versions"][EVIL] = EVIL
    (folder / "run.json").write_text(json.dumps(run))
    lines = (folder / "metrics.jsonl").read_text().replace("eval_wer_kan_clean", "eval_wer_" + EVIL)
    alert = {"alert": EVIL, "message": EVIL, "step": 130, "time": 1795356890.0}
    (folder / "metrics.jsonl").write_text(lines + json.dumps(alert) + "\n")
    with (folder / "training.log").open("a") as log:
        log.write(f"2027-01-01 00:00:00,000 ERROR {EVIL}\n")
    assert main(["watch", str(folder), "--page"]) == 0
    return folder / "run.html"


@pytest.fixture(scope="module")
def elements(page: Path) -> Elements:
    return Elements(page.read_text(encoding="utf-8"))


def test_nothing_on_the_page_runs_or_loads(elements: Elements) -> None:
    assert {tag for tag, _ in elements.tags}.isdisjoint({"script", "img", "link", "iframe", "object", "a", "base"})
    for tag, attributes in elements.tags:
        assert not {"src", "href", "style"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    policy = next(one["content"] for one in elements.all("meta") if one.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "http" not in policy


def test_hostile_text_is_shown_as_text(elements: Elements) -> None:
    shown = "".join(elements.text)
    assert shown.count(EVIL) >= 10


def test_every_line_has_a_point_for_every_entry(elements: Elements) -> None:
    entries = [json.loads(line) for line in (REAL_RUN / "metrics.jsonl").read_text().splitlines()]
    keys = ["loss", "eval_loss", "eval_wer", "eval_wer_kan_clean", "eval_wer_whatsapp_noisy"]
    keys += [f"learning_rate_{group}" for group in ("audio_top", "llm_top", "lm_head", "projector")]
    keys += ["samples_per_second", "data_wait_fraction", "grad_norm_max"]
    expected = [sum(key in entry for entry in entries) for key in keys]
    points = [(one["points"] or "").split() for one in elements.all("polyline")]
    assert sorted(map(len, points)) == sorted(expected)
    for line in points:
        xs = [float(point.split(",")[0]) for point in line]
        assert xs == sorted(xs)


def test_the_loss_falls_on_the_page_where_it_falls_in_the_file(elements: Elements) -> None:
    losses = [json.loads(line).get("loss") for line in (REAL_RUN / "metrics.jsonl").read_text().splitlines()]
    values = [loss for loss in losses if loss is not None]
    drawn = [float(point.split(",")[1]) for point in (elements.all("polyline")[0]["points"] or "").split()]
    pairs = zip(itertools.pairwise(values), itertools.pairwise(drawn), strict=True)
    assert all((before > after) == (above < below) for (before, after), (above, below) in pairs)


def test_each_chart_has_the_stages_and_the_alerts(elements: Elements) -> None:
    num_charts = len(elements.all("svg"))
    assert num_charts == 6
    assert len([one for one in elements.all("rect") if (one.get("class") or "").startswith("band")]) == 2 * num_charts
    assert len([one for one in elements.all("path") if one.get("class") == "alert"]) == 2 * num_charts


def test_the_page_of_a_run_before_its_first_step(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert main(["watch", str(tmp_path), "--page"]) == 0
    assert "Training has not written a step yet." in (tmp_path / "run.html").read_text()


@pytest.mark.parametrize(
    ("largest", "ticks"),
    [
        (0.0, [0, 1]),
        (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (250, [0, 50, 100, 150, 200, 250]),
        (1.6, [0, 0.5, 1, 1.5, 2]),
    ],
)
def test_ticks_are_round_and_reach_the_largest_value(largest: float, ticks: list[float]) -> None:
    assert round_ticks(largest) == pytest.approx(ticks)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_without_complaint(page: Path, tmp_path: Path, scheme: str) -> None:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=900,2900", "--enable-logging=stderr", "--v=0"]
    if scheme == "dark":
        command.append("--blink-settings=preferredColorScheme=0")
    shot = tmp_path / "page.png"
    done = subprocess.run(
        [*command, f"--screenshot={shot}", page.as_uri()], capture_output=True, text=True, timeout=240, check=True
    )
    assert shot.stat().st_size > 50_000
    assert "CONSOLE" not in done.stderr, "no script ran, nothing was refused, nothing was missing"
