"""Control P3: synthetic Hebrew against decoys tells a broken tool from bad data (AUDIT section 4)."""

import importlib.util
from typing import Any

from caspi.config import Recipe
from caspi.model.aligners import Workers
from caspi.model.aligners.battery import Task, plan_groups
from caspi.speech.alignment.calibration import NUM_FOLDS, Measured
from caspi.speech.alignment.controls import DECOY, ORIGINAL, PlannedPair
from caspi.speech.alignment.learned_score import learn_scores, rescored
from caspi.speech.alignment.validity import separation
from caspi.speech.seeds import seeded_generator
from caspi.speech.synthetic.synth import lexicon

SENTENCE_WORDS = 8


def self_test(workers: Workers, recipe: Recipe) -> dict[str, Any] | None:
    """Separation of synthetic sentences from their decoys, and whether it suffices; None without the espeak engine."""
    settings = recipe.audit
    count = settings.calibration.num_self_test_sentences
    if count == 0 or importlib.util.find_spec("espeakng_loader") is None:
        return None
    generator = seeded_generator(settings.seed, "self-test")
    size = (2, count, SENTENCE_WORDS)
    spoken, other = generator.choice(lexicon(), size=size).tolist()
    tasks = [
        Task(f"self-test-{i}", "", 0.0, 0.0, (PlannedPair(ORIGINAL, words), PlannedPair(DECOY, decoy)), words)
        for i, (words, decoy) in enumerate(zip(map(tuple, spoken), map(tuple, other), strict=True))
    ]
    outcomes = {o.id: o for group in workers.run(plan_groups(tasks, settings)) for o in group}
    measured = [
        Measured(task.id, "self-test", index % NUM_FOLDS, outcomes[task.id].pairs) for index, task in enumerate(tasks)
    ]
    score_model = learn_scores(measured, settings.calibration)
    measured = measured if score_model is None else rescored(measured, score_model)
    apart = separation(measured, settings.validity.num_bootstrap_draws, settings.seed)
    if apart is None:
        return {"num_pairs": 0, "passed": False}
    return {**apart._asdict(), "passed": apart.separable_mass >= settings.validity.min_separable_mass}
