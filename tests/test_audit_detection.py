"""The benchmark of the detector plants what it says and counts what it finds."""

import numpy as np
import pytest

from benchmarks.detection_tables import LEAST_DETECTION, audits_table, detection_table, flagged_share
from benchmarks.interval_coverage import Design, coverage, make_manifest
from benchmarks.planted import KINDS, Battery, audits_of_planted, judged_defects, plant
from caspi.config import Audit
from caspi.records import Utterance
from caspi.speech.alignment.controls import DECOY, ORIGINAL
from caspi.speech.alignment.quality import Alignment, Outcome, Pair
from caspi.speech.alignment.study import transcript_of

SETTINGS = Audit(seed=5)
WORDS = ["שלום", "לבן", "ילדה", "רוצה", "מיץ", "גשם", "חזק", "המורה"]


def made_pair(rng: np.random.Generator, centre: float) -> Pair:
    scores = rng.normal(centre, 1, len(WORDS))
    spans = tuple((0.4 * i, 0.4 * (i + 1)) for i in range(len(WORDS)))
    alignment = Alignment(spans, tuple(scores.tolist()), float(scores.mean()))
    return Pair((4,) * len(WORDS), 39, 3.2, np.ones(320, dtype=bool), alignment)


@pytest.fixture(scope="module")
def battery() -> Battery:
    """240 utterances whose good pairs score 9 above all others: a detector without fault."""
    rng = np.random.default_rng(3)
    utterances, outcomes, texts = [], {}, {}
    for number in range(240):
        own = " ".join(rng.permutation(WORDS))
        id_ = f"u{number}"
        domain = ("kan_clean", "whatsapp_noisy")[number % 2]
        utterances.append(Utterance(id=id_, audio_filepath="a.wav", text=own, duration=3.2, domain=domain))
        pairs = {ORIGINAL: made_pair(rng, 9.0), DECOY: made_pair(rng, 0.0)}
        pairs |= {control: made_pair(rng, 0.0) for control in KINDS.values()}
        outcomes[id_] = Outcome(id_, pairs, {})
        texts[id_] = dict.fromkeys(KINDS.values(), own)
    return Battery(1, utterances, {u.id: transcript_of(u) for u in utterances}, outcomes, texts)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.25])
def test_exactly_the_asked_share_comes_with_a_defect(rate: float, battery: Battery) -> None:
    utterances, outcomes, kinds = plant(battery, rate, 7)
    assert len(kinds) == round(rate * 240)
    assert plant(battery, rate, 7)[2] == kinds
    for utterance in utterances:
        kind = kinds.get(utterance.id)
        expected = battery.outcomes[utterance.id].pairs[KINDS[kind] if kind else ORIGINAL]
        assert outcomes[utterance.id].pairs[ORIGINAL] is expected
        assert set(outcomes[utterance.id].pairs) == {ORIGINAL, DECOY}


def test_a_detector_without_fault_meets_every_demand(battery: Battery) -> None:
    rows = judged_defects(battery, 0.12, SETTINGS)
    assert sum(row.kind == "good" for row in rows) == 240 - round(0.12 * 240)
    table = {line.split("|")[1].strip(): line for line in detection_table(rows).splitlines()[2:]}
    assert set(table) == {"good", *KINDS} == {"good", *LEAST_DETECTION}
    assert "0.000 [0.000, 0.017] 0/211" in table["good"]
    for kind in KINDS:
        assert "1.000 [0.985, 1.000] 240/240" in table[kind]


def test_sampling_is_the_only_error_of_a_detector_without_fault(battery: Battery) -> None:
    whole, part = (audits_of_planted(battery, 0.25, 1, num_samples, SETTINGS) for num_samples in (240, 120))
    for audit in (whole, part):
        assert audit.true_pct == audit.flagged_pct == 25.0
        assert audit.two_phase[0] == pytest.approx(audit.raw[0])  # the reviewer agrees with every flag
        assert sum(truth for truth, *_ in audit.domains.values()) / 2 == pytest.approx(25.0)
    assert whole.raw == (25.0, 25.0, 25.0)
    assert part.raw[1] <= 25.0 <= part.raw[2]
    assert part.raw[1] < part.raw[0] < part.raw[2]
    (line,) = audits_table([part]).splitlines()[2:]
    assert line.startswith("| 25.0 | ")


def test_a_share_is_shown_with_its_clopper_pearson_interval(battery: Battery) -> None:
    rows = judged_defects(battery, 0.0, SETTINGS)[:10]
    made = [row._replace(is_flagged=index < 2) for index, row in enumerate(rows)]
    assert flagged_share(made) == "0.200 [0.025, 0.556] 2/10"  # Clopper and Pearson 1934, 2 of 10


def test_a_simulated_detector_flags_what_its_rates_say() -> None:
    design = Design("made", (40_000, 10_000), (200, 100), (0.10, 0.30), utterances_per_group=5)
    bad, flagged = make_manifest(design, 0.9, 0.02, np.random.default_rng(1))
    for truth, flags, share in zip(bad, flagged, design.bad, strict=True):
        assert truth.mean() == pytest.approx(share)
        assert (truth.reshape(-1, 5).all(axis=1) | ~truth.reshape(-1, 5).any(axis=1)).all()
        assert flags[truth].mean() == pytest.approx(0.9, abs=0.02)
        assert flags[~truth].mean() == pytest.approx(0.02, abs=0.01)


def test_the_simulation_keeps_sampling_and_detector_apart() -> None:
    """With false alarms of 4 % on a clean manifest the interval holds what is flagged and not what is bad."""
    design = Design("clean", (3000, 3000), (150, 150), (0.0, 0.0))
    found = coverage(design, "TPR .92, FPR .04", 100, 1)
    assert found.true_pct == 0
    assert found.mean_pct == pytest.approx(4, abs=1)
    assert found.flagged_share_held > 0.8
    assert found.truth_held < 0.1
