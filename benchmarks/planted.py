"""Corpora with planted defects, put together from pairs that were aligned before, and their audits."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from caspi.config import Audit
from caspi.records import Utterance
from caspi.speech.alignment.calibration import Measured, fit_thresholds, fold_of, judge
from caspi.speech.alignment.controls import DECOY, ORIGINAL, Transcript
from caspi.speech.alignment.estimate import estimate_population, estimate_reviewed
from caspi.speech.alignment.quality import Outcome
from caspi.speech.alignment.review import Label, review_plan
from caspi.speech.alignment.sampling import draw_sample
from caspi.speech.alignment.study import study_of
from caspi.speech.seeds import seeded_generator

PLANTED_SHUFFLE = "planted_shuffle"
KINDS = {
    "shuffled": PLANTED_SHUFFLE,
    "truncated": "K2_truncated",
    "dropped": "K3_dropped",
    "extra": "K4_extra",
    "order": "K5_order",
    "half substituted": "K6_subst50",
    "reversed": "K7_reversed",
}
"""Kind of defect and the pair that has it."""
GOOD = "good"


class Battery(NamedTuple):
    """A good corpus and its aligned pairs: original, decoy and one of each kind of defect."""

    seed: int
    utterances: list[Utterance]
    transcripts: dict[str, Transcript]
    outcomes: dict[str, Outcome]
    texts: dict[str, dict[str, str]]
    """Text of each pair by utterance and control."""

    @classmethod
    def joined(cls, batteries: Sequence["Battery"]) -> "Battery":
        """One population; ids and speakers are told apart by the seed of their corpus."""
        utterances, transcripts, outcomes, texts = [], {}, {}, {}
        for battery in batteries:
            for utterance in battery.utterances:
                id_ = f"{battery.seed}-{utterance.id}"
                group = f"{battery.seed}-{utterance.group_id}"
                utterances.append(utterance.model_copy(update={"id": id_, "group_id": group}))
                transcripts[id_] = battery.transcripts[utterance.id]._replace(id=id_)
                outcomes[id_] = battery.outcomes[utterance.id]._replace(id=id_)
                texts[id_] = battery.texts[utterance.id]
        return cls(0, utterances, transcripts, outcomes, texts)


class JudgedPair(NamedTuple):
    seed: int
    rate: float
    domain: str
    kind: str
    """A key of `KINDS`, or `GOOD`."""
    is_flagged: bool
    reasons: list[str]


class PlantedAudit(NamedTuple):
    """One audit of a sample; shares in percent."""

    rate: float
    true_pct: float
    """Planted share in the population."""
    flagged_pct: float
    """Share of the population that the thresholds of this audit flag."""
    alpha_word: float
    raw: tuple[float, float, float]
    """Point, lower and upper end of the printed interval."""
    two_phase: tuple[float, float, float]
    """The same once a reviewer without errors has heard what the audit asks for."""
    num_labels: int
    domains: dict[str, tuple[float, float, float, float]]
    """Planted share, flagged share in the population, lower and upper end, by domain."""


def plant(battery: Battery, rate: float, seed: int) -> tuple[list[Utterance], dict[str, Outcome], dict[str, str]]:
    """A corpus in which `rate` of the utterances come with the pair of a defect; outcomes and kinds by id."""
    rng = seeded_generator(seed, "planted", f"{rate}")
    chosen = rng.permutation(len(battery.utterances))[: round(rate * len(battery.utterances))].tolist()
    utterances = list(battery.utterances)
    outcomes = {id_: with_own(outcome, ORIGINAL) for id_, outcome in battery.outcomes.items()}
    kinds: dict[str, str] = {}
    for index in chosen:
        utterance = utterances[index]
        outcome = battery.outcomes[utterance.id]
        able = [kind for kind, control in KINDS.items() if control in outcome.pairs]
        kind = kinds[utterance.id] = able[int(rng.integers(len(able)))]
        outcomes[utterance.id] = with_own(outcome, KINDS[kind])
        utterances[index] = utterance.model_copy(update={"text": battery.texts[utterance.id][KINDS[kind]]})
    return utterances, outcomes, kinds


def with_own(outcome: Outcome, control: str) -> Outcome:
    """An utterance that comes with the pair of a control for its own."""
    return outcome._replace(pairs={ORIGINAL: outcome.pairs[control], DECOY: outcome.pairs[DECOY]})


def judged_defects(battery: Battery, rate: float, settings: Audit) -> list[JudgedPair]:
    """Every good pair and every defect of every utterance, by the thresholds of a corpus with `rate` planted."""
    planted, outcomes, kinds = plant(battery, rate, battery.seed)
    measured = [measured_of(u, outcomes[u.id], settings) for u in planted]
    thresholds = fit_thresholds(measured, settings)
    rows = []
    for utterance in battery.utterances:
        outcome = battery.outcomes[utterance.id]
        good = {} if utterance.id in kinds else {GOOD: ORIGINAL}
        for kind, control in {**good, **KINDS}.items():
            if control in outcome.pairs:
                item = measured_of(utterance, with_own(outcome, control), settings)
                reasons = judge(item, ORIGINAL, thresholds, settings).reasons
                rows.append(JudgedPair(battery.seed, rate, utterance.domain, kind, bool(reasons), reasons))
    return rows


def measured_of(utterance: Utterance, outcome: Outcome, settings: Audit) -> Measured:
    return Measured(
        utterance.id, utterance.domain, fold_of(utterance.group_id or utterance.id, settings.seed), outcome.pairs
    )


def audits_of_planted(battery: Battery, rate: float, number: int, num_samples: int, settings: Audit) -> PlantedAudit:
    """Plant, draw a sample, audit it as `caspi audit` does, review it without errors; compare with the whole."""
    utterances, outcomes, kinds = plant(battery, rate, number)
    ids, domains = [u.id for u in utterances], [u.domain for u in utterances]
    sample = draw_sample(ids, domains, num_samples, settings.domain_shares, settings.seed)
    audited = [utterances[index] for index in sample.indices]
    study = study_of(audited, battery.transcripts, outcomes, sample, settings)
    assert study.thresholds is not None
    statuses = {domain: row["status"] for domain, row in study.validity.by_domain.items()}
    estimated = estimate_population(study.findings, sample.population, statuses, settings)
    planned = review_plan(study.findings, sample.population, settings.review, settings.seed)
    labels = [Label(id=id_, verdict="bad" if id_ in kinds else "good") for id_ in planned]
    reviewed = estimate_reviewed(study.findings, estimated, sample.population, labels, settings)
    flags = {
        u.id: bool(judge(measured_of(u, outcomes[u.id], settings), ORIGINAL, study.thresholds, settings).reasons)
        for u in utterances
    }
    rows = estimated["domain_statistics"]
    members = {domain: [u.id for u in utterances if u.domain == domain] for domain in rows}
    return PlantedAudit(
        rate=rate,
        true_pct=100 * len(kinds) / len(ids),
        flagged_pct=100 * sum(flags.values()) / len(ids),
        alpha_word=study.thresholds.alpha_word,
        raw=limits(estimated["estimate"]["raw"]),
        two_phase=limits(reviewed["estimate"]["two_phase"]),
        num_labels=len(labels),
        domains={
            domain: (
                percent(kinds.keys() & set(inside), inside),
                percent([id_ for id_ in inside if flags[id_]], inside),
                rows[domain]["ci"]["lower"],
                rows[domain]["ci"]["upper"],
            )
            for domain, inside in members.items()
        },
    )


def limits(interval: Mapping[str, float]) -> tuple[float, float, float]:
    return interval["point"], interval["lower"], interval["upper"]


def percent(some: Sequence[str] | set[str], everything: Sequence[str]) -> float:
    return 100 * len(some) / len(everything)
