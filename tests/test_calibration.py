"""Thresholds, validity and decision on simulated aligners whose power is known."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from caspi.config import Audit
from caspi.ops.audit.decision import Evidence, decide
from caspi.speech.alignment.calibration import (
    Measured,
    fit_thresholds,
    fold_of,
    judge,
    matched_probability,
)
from caspi.speech.alignment.controls import (
    DECOY,
    DEFECTS,
    DISTORTIONS,
    HARMLESS,
    ORIGINAL,
    REVERSED,
    DecoyChooser,
    Transcript,
    dose_control,
    plan_doses,
    plan_pairs,
)
from caspi.speech.alignment.logistic import fit_logistic
from caspi.speech.alignment.quality import Alignment, Pair
from caspi.speech.alignment.validity import Validity, assess, auc, bootstrap_auc

SETTINGS = Audit()
NUM_WORDS = 8


def made_pair(rng: np.random.Generator, centre: float) -> Pair:
    """Eight words of 0.3 s that cover all speech; scores spread by 1 around a centre."""
    scores = rng.normal(centre, 1, NUM_WORDS)
    spans = tuple((0.3 * i, 0.3 * (i + 1)) for i in range(NUM_WORDS))
    alignment = Alignment(spans, tuple(scores.tolist()), float(scores.mean()))
    return Pair((4,) * NUM_WORDS, 39, 2.4, np.ones(240, dtype=bool), alignment)


def simulate(count: int, separation: float, bad_fraction: float = 0.0, seed: int = 0) -> list[Measured]:
    """Utterances whose true words score `separation` above wrong ones; a share of the originals is wrong."""
    rng = np.random.default_rng(seed)
    items = []
    for number in range(count):
        centre = 0.0 if number < bad_fraction * count else separation
        pairs = {ORIGINAL: made_pair(rng, centre), DECOY: made_pair(rng, 0.0)}
        pairs |= {control: made_pair(rng, 0.0) for control in (*DEFECTS, REVERSED)}
        pairs |= {HARMLESS[number % len(HARMLESS)]: made_pair(rng, centre)}
        for level in SETTINGS.calibration.dose_levels:
            pairs[dose_control(level)] = made_pair(rng, (1 - level) * centre)
        items.append(Measured(f"u{number}", ("a", "b")[number % 2], fold_of(f"u{number}", 1), pairs))
    return items


def study(items: list[Measured], num_failed: int = 0) -> Validity:
    return assess(items, fit_thresholds(items, SETTINGS), num_failed, len(items), SETTINGS)


def test_thresholds_refuse_wrong_transcripts_that_did_not_teach_them() -> None:
    items = simulate(400, 3.0)
    thresholds = fit_thresholds(items, SETTINGS)
    accepted = sum(not judge(item, DECOY, thresholds, SETTINGS).reasons for item in items)
    assert accepted / len(items) <= 0.02
    flagged = sum(bool(judge(item, ORIGINAL, thresholds, SETTINGS).reasons) for item in items)
    assert flagged / len(items) <= 0.03


def test_the_coverage_of_a_wrong_transcript_is_the_false_acceptance_of_words() -> None:
    items = simulate(400, 3.0)
    thresholds = fit_thresholds(items, SETTINGS)
    coverage = [judge(item, DECOY, thresholds, SETTINGS).measures.alignment_coverage for item in items]
    assert np.mean(coverage) == pytest.approx(thresholds.alpha_word, abs=0.02)


def test_a_fold_is_judged_by_the_other_one() -> None:
    items = simulate(100, 3.0)
    before = fit_thresholds(items, SETTINGS)
    rng = np.random.default_rng(9)
    changed = [
        Measured(i.id, i.domain, 0, {**i.pairs, DECOY: made_pair(rng, 50.0)}) if i.fold == 0 else i for i in items
    ]
    after = fit_thresholds(changed, SETTINGS)
    assert after.confidence[0, "a"] == before.confidence[0, "a"]
    assert after.confidence[1, "a"] != before.confidence[1, "a"]


@pytest.mark.parametrize(("count", "is_judged"), [(80, True), (40, False)])
def test_a_domain_large_enough_to_be_judged_has_its_own_confidence(count: int, is_judged: bool) -> None:
    """Right transcripts of domain b score 3 above wrong ones, those of a 9: even odds in b are at 1.5."""
    clean, noisy = simulate(count, 9.0), simulate(count, 3.0)
    items = [(noisy if item.domain == "b" else clean)[number] for number, item in enumerate(clean)]
    thresholds = fit_thresholds(items, SETTINGS)
    for fold in (0, 1):
        curve = thresholds.confidence[fold, "b"]
        assert (abs(-curve.intercept / curve.weights[0] - 1.5) < 0.1) == is_judged
        assert (thresholds.confidence[fold, "a"] != thresholds.confidence[fold, "b"]) == is_judged


def test_utterances_of_one_recording_share_a_fold_and_both_folds_are_used() -> None:
    assert len({fold_of(f"r{i}", 42) for i in range(50)}) == 2
    assert fold_of("r1", 42) == fold_of("r1", 42)


def test_even_odds_are_where_both_kinds_are_equally_likely() -> None:
    rng = np.random.default_rng(0)
    parameters = fit_logistic(rng.normal(4, 1, (4000, 1)), rng.normal(2, 1, (4000, 1)))
    assert matched_probability(3.0, parameters) == pytest.approx(0.5, abs=0.03)
    assert matched_probability(4.0, parameters) == pytest.approx(1 / (1 + np.exp(-2)), abs=0.03)


def test_constant_scores_say_nothing() -> None:
    assert matched_probability(1.0, fit_logistic(np.ones((50, 1)), np.ones((50, 1)))) == pytest.approx(0.5)


def test_perfect_separation_stays_finite() -> None:
    parameters = fit_logistic(np.linspace(5, 6, 40)[:, None], np.linspace(0, 1, 40)[:, None])
    assert np.isfinite([*parameters.weights, parameters.intercept]).all()
    assert matched_probability(5.5, parameters) > 0.9


def test_auc_is_the_normal_one() -> None:
    rng = np.random.default_rng(1)
    expected = norm.cdf(1 / np.sqrt(2))
    assert auc(rng.normal(1, 1, 20_000), rng.normal(0, 1, 20_000)) == pytest.approx(expected, abs=0.01)
    assert auc(np.ones(5), np.ones(7)) == 0.5


def test_the_bootstrap_of_the_auc_centres_on_it_and_agrees_with_drawing_one_by_one() -> None:
    rng = np.random.default_rng(1)
    matched, wrong = rng.normal(1, 1, 60).round(1), rng.normal(0, 1, 60).round(1)
    draws = bootstrap_auc(matched, wrong, 400, np.random.default_rng(2))
    chosen = [rng.integers(60, size=60) for _ in range(400)]
    slow = [auc(matched[c], wrong[c]) for c in chosen]
    assert draws.mean() == pytest.approx(auc(matched, wrong), abs=0.01)
    assert draws.std() == pytest.approx(np.std(slow), rel=0.15)


def test_a_good_aligner_is_valid() -> None:
    assert study(simulate(300, 3.0)).status == "valid"


def test_a_blind_aligner_is_invalid() -> None:
    assert study(simulate(300, 0.0)).status == "invalid"


def test_bad_data_do_not_make_a_good_aligner_invalid() -> None:
    result = study(simulate(400, 3.0, bad_fraction=0.4))
    assert result.status in ("valid", "degraded")
    assert result.separation is not None
    assert result.separation.separable_mass > 0.5


def test_a_weak_aligner_is_degraded() -> None:
    assert study(simulate(300, 0.75)).status in ("degraded", "invalid")


def test_failures_make_the_audit_invalid() -> None:
    items = simulate(300, 3.0)
    assert study(items, num_failed=3).status == "valid"
    assert study(items, num_failed=4).status == "invalid"


def test_too_few_utterances_make_the_audit_invalid() -> None:
    assert study(simulate(29, 3.0)).status == "invalid"


def test_nothing_aligned_is_invalid_and_not_an_error() -> None:
    assert assess([], None, 10, 10, SETTINGS).status == "invalid"
    with pytest.raises(ValueError, match="nothing to calibrate on"):
        fit_thresholds([], SETTINGS)


def evidence(pct: float, **changes: Any) -> Evidence:
    """An audit of everything: no sampling error."""
    return Evidence("valid", pct, pct, pct, 2.0, (), None)._replace(**changes)


@pytest.mark.parametrize(
    ("pct", "decision", "code"),
    [
        (0.0, "PROCEED", "PROVEN_BELOW_10"),
        (9.99, "PROCEED", "PROVEN_BELOW_10"),
        (10.0, "CAUTION", "BETWEEN_10_15"),
        (15.0, "CAUTION", "BETWEEN_10_15"),
        (15.01, "STOP", "DATA_QUALITY"),
        (100.0, "STOP", "DATA_QUALITY"),
    ],
)
@pytest.mark.parametrize("gate", ["evidence", "point"])
def test_the_decision_table(pct: float, decision: str, code: str, gate: str) -> None:
    verdict = decide(evidence(pct), SETTINGS.model_copy(update={"gate": gate}))
    assert verdict.decision == decision
    assert verdict.code == (code if gate == "evidence" else "POINT_RULE")
    assert verdict.certainty == "confirmed"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"upper_pct": 10.0, "way_to_settle": "about 748 samples would settle it"}, "NOT_PROVEN_BELOW_10"),
        ({"alarming_domains": ("whatsapp_noisy",)}, "DOMAIN_ALERT"),
        ({"status": "degraded"}, "DEGRADED_ALIGNER"),
        ({"gross_mismatch_upper_pct": 10.0}, "REVIEW_FIRST"),
    ],
)
def test_each_doubt_turns_proceed_into_caution_but_not_under_the_point_rule(
    changes: dict[str, object], code: str
) -> None:
    verdict = decide(evidence(7.0, **changes), SETTINGS)
    assert (verdict.decision, verdict.code) == ("CAUTION", code)
    point = decide(evidence(7.0, **changes), SETTINGS.model_copy(update={"gate": "point"}))
    assert point.decision == "PROCEED"


@pytest.mark.parametrize("gate", ["evidence", "point"])
def test_an_invalid_audit_never_opens(gate: str) -> None:
    verdict = decide(evidence(0.0, status="invalid"), SETTINGS.model_copy(update={"gate": gate}))
    assert (verdict.decision, verdict.code) == ("STOP", "AUDIT_INVALID")


def test_an_interval_across_a_threshold_is_borderline() -> None:
    assert decide(evidence(16.0, lower_pct=14.0, upper_pct=18.0), SETTINGS).certainty == "borderline"


def transcript(name: str, text: str, domain: str = "a") -> Transcript:
    words = tuple(text.split())
    return Transcript(name, domain, None, words, sum(map(len, words)))


def test_a_decoy_is_as_long_and_says_something_else() -> None:
    own = transcript("1", "אאא בבב גגג")
    same_words = transcript("2", "גגג אאא בבב")
    fitting = transcript("3", "דדד ההה ווו")
    long = transcript("4", "ד" * 40)
    elsewhere = transcript("5", "זזז חחח טטט", domain="b")
    chooser = DecoyChooser([own, same_words, long, fitting, elsewhere], SETTINGS.calibration, 1)
    assert chooser.choose(own) == fitting
    assert chooser.choose(elsewhere) is not None
    assert DecoyChooser([own, same_words], SETTINGS.calibration, 1).choose(own) is None


def test_controls_change_what_they_say_they_change() -> None:
    audited = [transcript(str(i), " ".join(f"{letter}{i}" for letter in "אבגדהוזח")) for i in range(12)]
    planned = plan_pairs(audited, audited, SETTINGS.calibration, 1)
    assert planned == plan_pairs(audited, audited, SETTINGS.calibration, 1)
    for item in audited:
        by_control = {pair.control: pair for pair in planned[item.id]}
        assert by_control[ORIGINAL].words == item.words
        assert not set(by_control[DECOY].words) & set(item.words)
        assert 4 <= len(by_control["K3_dropped"].words) <= 5
        assert 12 <= len(by_control["K4_extra"].words) <= 15
        assert sorted(by_control["K5_order"].words) == sorted(item.words)
        assert by_control["K5_order"].words != item.words
        assert sum(a != b for a, b in zip(by_control["K6_subst50"].words, item.words, strict=True)) == 4
        assert by_control["K2_truncated"].distortion == "truncated"
        assert by_control["K7_reversed"].distortion == "reversed"


def test_doses_grow_from_nothing_to_everything() -> None:
    item = transcript("1", "א ב ג ד")
    changed = [
        sum(a != b for a, b in zip(pair.words, item.words, strict=True))
        for pair in plan_doses(item, ("ש", "ת", "ר", "ק"), (0, 0.5, 1), 1)
    ]
    assert changed == [0, 2, 4]


@pytest.mark.parametrize("name", sorted(DISTORTIONS))
def test_distortions_give_finite_audio_of_the_expected_length(name: str) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    expected = {"truncated": 8000, "slower": 16_842, "faster": 15_238, "silence": 23_680}.get(name, 16_000)
    changed = DISTORTIONS[name](samples, 0.5)
    assert abs(len(changed) - expected) <= 2
    assert changed.dtype == np.float32
    assert np.isfinite(changed).all()
