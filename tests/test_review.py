"""Blind review: who is heard, which labels count, and whether the corrected estimate finds the truth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_audit import made_corpus, run_made_audit

from caspi import audit
from caspi.config import Audit, Estimation, Recipe, Review
from caspi.records import sha256_of_file
from caspi.speech.alignment.findings import Finding
from caspi.speech.alignment.review import GOLD_FORMAT, REVIEW_FORMAT, TAGS, Label, review_plan, seal
from caspi.speech.alignment.two_phase import Share, cells_of, labels_needed, rogan_gladen, two_phase_interval

TPR, FPR = 0.90, 0.028
"""Of the detector in AUDIT section 6: it flags 2.8 % of good pairs, 11.6 % when 10 % are bad."""
FAST = Audit(estimation=Estimation(num_bootstrap_draws=400))


def finding(number: int, *, is_flagged: bool, domain: str = "a", weight: float = 1.0, reasons: Any = None) -> Finding:
    reasons = reasons if reasons is not None else ["LOW_COVERAGE"] if is_flagged else []
    return Finding.model_construct(
        sample_id=f"u{number}", domain=domain, group_id=None, weight=weight, low_quality=is_flagged, reasons=reasons
    )


def simulate(
    rng: np.random.Generator, share_bad: float, population: int, num_audited: int
) -> tuple[list[Finding], set[str]]:
    """Audited findings of a population with a planted share of bad pairs, and the ids of the bad ones."""
    bad = rng.permutation(population)[:num_audited] < round(share_bad * population)
    flagged = rng.random(num_audited) < np.where(bad, TPR, FPR)
    weight = population / num_audited
    found = [finding(i, is_flagged=bool(one), weight=weight) for i, one in enumerate(flagged)]
    return found, {f"u{i}" for i in np.flatnonzero(bad)}


def hear(findings: list[Finding], bad: set[str], population: int, settings: Audit) -> list[Label]:
    plan = review_plan(findings, {"a": population}, settings.review, settings.seed)
    return [Label(id=id_, verdict="bad" if id_ in bad else "good") for id_ in plan]


@pytest.mark.parametrize(
    ("truth_pct", "raw_pct", "sd_pct"),
    [(0.0, 2.8, 0.1), (5.0, 7.0, 0.8), (8.0, 9.5, 1.0), (10.0, 11.6, 1.15), (12.0, 13.2, 1.3), (15.0, 15.8, 1.5)],
)
def test_a_hundred_heard_clips_take_the_detectors_bias_away(truth_pct: float, raw_pct: float, sd_pct: float) -> None:
    """The table of AUDIT section 6 (raw flagged, and two-phase with its spread), on corpora of 300 utterances."""
    rng = np.random.default_rng(int(10 * truth_pct) + 1)
    errors, raw, covered, repetitions = [], [], 0, 100
    for repetition in range(repetitions):
        settings = FAST.model_copy(update={"seed": repetition})
        findings, bad = simulate(rng, truth_pct / 100, 300, 300)
        cells = cells_of(findings, {"a": 300}, hear(findings, bad, 300, settings))
        interval, _ = two_phase_interval(findings, {"a": 300}, cells, 1.0, settings)
        errors.append(interval.point - truth_pct)
        raw.append(100 * np.mean([f.low_quality for f in findings]))
        covered += interval.lower <= truth_pct <= interval.upper
    assert np.mean(raw) == pytest.approx(raw_pct, abs=0.7), "the planted detector is the one of the table"
    assert abs(np.mean(errors)) < 0.3
    assert np.std(errors) <= sd_pct
    assert covered / repetitions >= 0.85


def test_the_interval_also_knows_that_only_a_sample_was_audited() -> None:
    rng = np.random.default_rng(4)
    covered, below, repetitions = 0, 0, 150
    for repetition in range(repetitions):
        settings = FAST.model_copy(update={"seed": repetition})
        findings, bad = simulate(rng, 0.10, 20_000, 500)
        cells = cells_of(findings, {"a": 20_000}, hear(findings, bad, 20_000, settings))
        interval, _ = two_phase_interval(findings, {"a": 20_000}, cells, 1.0, settings)
        covered += interval.lower <= 10 <= interval.upper
        below += interval.upper >= 10
    assert covered / repetitions >= 0.87
    assert below / repetitions >= 0.93


def test_gold_labels_correct_the_flagged_share_by_hand() -> None:
    """13 % flagged, FPR 3 of 60, TPR 18 of 20: (0.13 - 0.05) / (0.9 - 0.05) = 9.41 %."""
    flags = [True] * 18 + [False] * 2 + [True] * 3 + [False] * 57
    findings = [finding(i, is_flagged=flag) for i, flag in enumerate(flags)]
    gold = [Label(id=f"u{i}", verdict="bad" if i < 20 else "good") for i in range(80)]
    raw = {"point": 13.0, "n_eff": 300.0, "deff": 1.0, "method": "wilson_neff"}
    interval, used = rogan_gladen(findings, raw, gold, None, Audit())
    assert interval is not None
    assert interval.point == pytest.approx(9.4118, abs=1e-3)
    assert interval.lower < interval.point < interval.upper
    assert (used["fpr"], used["tpr"], used["tpr_from"]) == (0.05, 0.9, "gold")
    few, used = rogan_gladen(findings, raw, gold[15:], 0.95, Audit())
    assert few is not None
    assert (used["tpr"], used["tpr_from"], used["num_bad"]) == (0.95, "controls", 5)
    assert rogan_gladen(findings, raw, gold[15:], 0.06, Audit())[0] is None, "a blind detector corrects nothing"


def test_the_review_is_a_random_sample_of_both_kinds_and_its_order_tells_nothing() -> None:
    findings = [finding(i, is_flagged=i % 10 == 0, domain="ab"[i % 3 == 0]) for i in range(1000)]
    plan = review_plan(findings, {"a": 667, "b": 333}, Review(), 1)
    flags = [int(id_[1:]) % 10 == 0 for id_ in plan]
    assert sum(flags) == 40
    assert len(plan) == 100
    assert list(plan.values()) == list(range(100))
    assert 10 <= sum(flags[:50]) <= 30, "flagged clips come early and late"
    domains = ["ab"[int(id_[1:]) % 3 == 0] for id_, flag in zip(plan, flags, strict=True) if not flag]
    assert domains.count("b") == 20, "a third of the population, a third of the sixty"
    longer = review_plan(findings, {"a": 667, "b": 333}, Review(num_clips=200), 1)
    assert set(plan) <= set(longer)


def test_clips_that_cannot_be_heard_count_as_bad_without_review() -> None:
    silent = [finding(i, is_flagged=True, reasons=["AUDIO_ERROR"]) for i in range(5)]
    findings = silent + [finding(i, is_flagged=i < 25) for i in range(5, 100)]
    plan = review_plan(findings, {"a": 100}, Review(), 1)
    assert not {f.sample_id for f in silent} & set(plan)
    labels = [Label(id=id_, verdict="good") for id_ in plan]
    interval, _ = two_phase_interval(findings, {"a": 100}, cells_of(findings, {"a": 100}, labels), 1.0, Audit())
    assert interval.point == pytest.approx(5.0)


def test_unsure_clips_widen_the_interval_to_hold_either_answer() -> None:
    rng = np.random.default_rng(1)
    findings, bad = simulate(rng, 0.10, 300, 300)
    labels = hear(findings, bad, 300, FAST)
    doubtful = [one.model_copy(update={"verdict": "unsure"}) if i % 10 == 0 else one for i, one in enumerate(labels)]

    def interval_of(given: list[Label]) -> Any:
        return two_phase_interval(findings, {"a": 300}, cells_of(findings, {"a": 300}, given), 1.0, FAST)[0]

    sure, unsure = interval_of(labels), interval_of(doubtful)
    for verdict in ("good", "bad"):
        decided = [one.model_copy(update={"verdict": verdict}) if one.verdict == "unsure" else one for one in doubtful]
        assert unsure.lower <= interval_of(decided).point <= unsure.upper
    assert unsure.upper - unsure.lower > sure.upper - sure.lower
    assert unsure.n_eff == 90


def test_labels_needed_follow_from_the_spread_that_labels_can_take_away() -> None:
    """8 % +- 2 points from 100 labels: (2 points / 2.926)^2 is allowed, so 100 * 2^2 / (2 / 2.926)^2 = 856 labels."""
    spread = np.array([0.06, 0.10])
    assert labels_needed(Share(0.08, spread, spread), 0.10, 100, 2.926) == 857
    assert labels_needed(Share(0.08, spread, np.array([0.08, 0.08])), 0.10, 100, 2.926) is None


def test_only_unsure_labels_are_refused_in_one_line() -> None:
    findings = [finding(i, is_flagged=i < 20) for i in range(100)]
    labels = [Label(id=f.sample_id, verdict="unsure") for f in findings]
    with pytest.raises(ValueError, match=r"no flagged clip has a verdict good or bad \(20 unsure\)"):
        two_phase_interval(findings, {"a": 100}, cells_of(findings, {"a": 100}, labels), 1.0, FAST)


class Reviewed:
    """An audit of 200 clips of which every tenth is wrongly transcribed, and labels of its review."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bad = frozenset(f"clip-{i:05}" for i in range(0, 200, 10))
        self.manifest, self.output = made_corpus(folder / "corpus", 200), folder / "audit"
        self.code, self.recipe = run_made_audit(self.manifest, self.output, self.bad, monkeypatch)
        rows = [json.loads(line) for line in (self.output / "samples.jsonl").read_text("utf-8").splitlines()]
        self.findings = [Finding.model_validate(row) for row in rows]
        self.plan = review_plan(self.findings, {"kan_clean": 100, "whatsapp_noisy": 100}, Review(), 42)

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.output / "alignment_report.json").read_text("utf-8"))
        return report

    def labels(self, **changes: Any) -> dict[str, Any]:
        labels = [Label(id=id_, verdict="bad" if id_ in self.bad else "good") for id_ in self.plan]
        labels[0] = labels[0].model_copy(update={"tags": (TAGS[0], TAGS[4])})
        given = changes.pop("labels", labels)
        file = {
            "format": REVIEW_FORMAT,
            "manifest_sha256": sha256_of_file(self.manifest),
            "samples_sha256": sha256_of_file(self.output / "samples.jsonl"),
            "labels": [one.model_dump(mode="json") for one in given],
            "labels_sha256": seal(given),
        }
        return file | changes

    def run(self, path: Path, kind: str = "labels") -> int:
        settings = self.recipe.audit.model_copy(update={kind: path})
        return audit.run(Recipe(audit=settings))


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory: pytest.TempPathFactory) -> Reviewed:
    with pytest.MonkeyPatch.context() as patch:
        return Reviewed(tmp_path_factory.mktemp("reviewed"), patch)


def test_labels_decide_without_aligning_again(
    reviewed: Reviewed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from test_audit import read_report

    before = reviewed.report()
    assert before["estimate"]["basis"] == "raw"
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(reviewed.labels()))
    reviewed.run(path)
    report = read_report(reviewed.output)
    assert report["estimate"]["basis"] == "two_phase"
    assert report["low_quality_percentage"] == report["estimate"]["two_phase"]["point"] == pytest.approx(10, abs=2)
    assert report["estimate"]["raw"] == before["estimate"]["raw"]
    assert report["review"]["num_labels"] == report["review"]["num_planned"] == 100
    assert report["review"]["tags"] == {"noise": 1, "wrong text": 1}
    assert report["provenance"] == before["provenance"]
    assert report["detailed_metrics"] == before["detailed_metrics"]
    assert "After blind review: " in capsys.readouterr().out
    first = (reviewed.output / "alignment_report.json").read_bytes()
    reviewed.run(path)
    assert (reviewed.output / "alignment_report.json").read_bytes() == first, "same labels, same bytes"


def test_gold_labels_are_a_cross_check_that_decides_nothing(reviewed: Reviewed, tmp_path: Path) -> None:
    gold = [Label(id=f"clip-{i:05}", verdict="bad" if i % 10 == 0 else "good") for i in range(200)]
    path = tmp_path / "gold.json"
    path.write_text(json.dumps(reviewed.labels(format=GOLD_FORMAT, labels=gold)))
    reviewed.run(path, "gold_labels")
    estimate = reviewed.report()["estimate"]
    assert estimate["basis"] == "raw"
    assert estimate["rogan_gladen"]["point"] == pytest.approx(10, abs=0.01), "with every truth known it is exact"
    assert (estimate["gold"]["num_good"], estimate["gold"]["num_bad"]) == (180, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"manifest_sha256": "0" * 64}, "about another audit: its manifest hash is 000000000000"),
        ({"samples_sha256": "1" * 64}, "about another audit: its samples.jsonl hash is 111111111111"),
        ({"labels_sha256": "2" * 64}, "was changed after its export"),
        ({"format": GOLD_FORMAT}, "holds caspi-gold-labels/1, expected caspi-review-labels/1"),
        ({"format": "other"}, "is not a label file of caspi"),
        ({"labels": [Label(id="nowhere", verdict="good")]}, "labels clip 'nowhere', which is not in the review sample"),
        ({"labels": 2 * [Label(id="u", verdict="good")]}, "labels clip 'u' 2 times"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"labels": []}, "labels: Tuple should have at least 1 item"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:30],
)
def test_foreign_and_edited_labels_are_refused_in_one_line(
    changes: dict[str, Any], message: str, reviewed: Reviewed, tmp_path: Path
) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(reviewed.labels(**changes)))
    with pytest.raises(ValueError, match=message) as refused:
        reviewed.run(path)
    assert "\n" not in str(refused.value)


def test_one_changed_verdict_breaks_the_seal(reviewed: Reviewed, tmp_path: Path) -> None:
    file = reviewed.labels()
    file["labels"][3]["verdict"] = "unsure"
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(file))
    with pytest.raises(ValueError, match="was changed after its export"):
        reviewed.run(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"labels": ' + b"[" * 5000], ids=range(4))
def test_files_that_are_no_labels_are_refused(content: bytes, reviewed: Reviewed, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not a label file of caspi|is not UTF-8"):
        reviewed.run(path)
    with pytest.raises(ValueError, match="there is no label file"):
        reviewed.run(tmp_path / "missing.json")


def test_report_samples_and_manifest_must_belong_together(reviewed: Reviewed, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(reviewed.labels()))
    samples, manifest = reviewed.output / "samples.jsonl", reviewed.manifest
    for file, change, message in (
        (samples, lambda text: text.replace('"low_quality":false', '"low_quality":true', 1), "are not of one audit"),
        (samples, lambda text: text.replace("clip-00001", "clip-xxxxx", 1), "are not of one audit"),
        (manifest, lambda text: text + "\n", "is about another manifest than"),
    ):
        kept = file.read_text("utf-8")
        changed = change(kept.replace('": ', '":') if file == samples else kept)
        file.write_text(changed, "utf-8")
        with pytest.raises(ValueError, match=message):
            reviewed.run(path)
        file.write_text(kept, "utf-8")
