"""The demo's page: hostile text in its files stays text, and nothing on it runs or loads."""

import html.parser
import json
from pathlib import Path
from typing import Any

import pytest

from caspi.config import Recipe
from caspi.demo import demo_recipe, with_section
from caspi.records import Prediction, write_jsonl
from caspi.report import write_index

EVIL = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&"


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


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def prediction(round_number: int) -> Prediction:
    return Prediction(
        id=EVIL, test_set="eval-whatsapp", reference=f"{EVIL} שלום", hypothesis=f"{EVIL} {round_number}", domain=EVIL,
        group_id=None, duration=1.0, finish_reason="stop",
    )  # fmt: skip


@pytest.fixture(scope="module")
def elements(tmp_path_factory: pytest.TempPathFactory) -> Elements:
    """The page of a demo whose every free text is hostile."""
    output = tmp_path_factory.mktemp("demo")
    recipe = demo_recipe(with_section(Recipe(), "demo", output=str(output)))
    report = {"decision": EVIL, "decision_code": EVIL, "low_quality_percentage": 1.0, "total_samples": 1}
    report |= {"estimate": {"raw": {"point": 1.0, "lower": 0.0, "upper": 2.0}}, "provenance": {"backend": EVIL}}
    write(recipe.train.gate_report, report)
    for audit in recipe.demo.audits:
        write(output / "audits" / audit.name / "alignment_report.json", report)
    rates = {"round1_wer": 0.2, "round2_wer": 0.1, "difference": -0.1, "low": None, "high": None}
    rates |= dict.fromkeys(("round1_low", "round1_high", "round2_low", "round2_high"))
    row = {"test_set": EVIL, "bucket": "all", "num_utterances": 1, "verdict": EVIL, **rates}
    criterion = {"level": EVIL, "name": EVIL, "outcome": EVIL, "finding": EVIL}
    write(output / "comparison.json", {"is_better": True, "rows": [row], "criteria": [criterion]})
    log = [{"step": 1, "loss": 2.0, "epoch": 0.5}]
    log += [{"step": 2, "epoch": 5.0, "eval_loss": 1.0, "eval_wer": 0.5, "eval_cer": 0.2, f"eval_wer_{EVIL}": 0.5}]
    write(recipe.train.output_dir / "trainer_state.json", {"global_step": 2, "log_history": log})
    for number in (1, 2):
        write_jsonl(recipe.compare.predictions / f"round{number}" / "predictions.jsonl", [prediction(number)])
    write_index(recipe)
    return Elements((output / "index.html").read_text(encoding="utf-8"))


def test_nothing_on_the_page_runs_or_loads(elements: Elements) -> None:
    assert {tag for tag, _ in elements.tags}.isdisjoint({"script", "img", "link", "iframe", "object", "base"})
    for tag, attributes in elements.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert "src" not in attributes, tag
    links = [attributes["href"] for tag, attributes in elements.tags if tag == "a"]
    assert links
    assert not [link for link in links if link is None or ":" in link], "links stay in the folder"
    policy = next(str(values["content"]) for _, values in elements.tags if "http-equiv" in values)
    assert policy.startswith("default-src 'none'")


def test_hostile_text_is_shown_as_text(elements: Elements) -> None:
    assert "".join(elements.text).count(EVIL) >= 12
