"""Looking before the whole sample is aligned, and stopping when the decision is settled (AUDIT section 6).

The sample is nested, so every look is a part of the next one. Each look gets an equal part of the error that the
interval may make (Bonferroni), so that all of them together err no more often than a single one would.
"""

from caspi.config import Audit


def look_sizes(num_samples: int, population: int, settings: Audit) -> list[int]:
    """Sample sizes to look at, the whole sample last.

    A look costs every look some width, so it has to save at least half of the sample. Nobody looks early at a census,
    which is taken to know everything, and not under the point rule, which proves nothing.
    """
    if num_samples >= population or settings.gate == "point":
        return [num_samples]
    return [size for size in sorted(set(settings.looks)) if 2 * size <= num_samples] + [num_samples]


def at_level_of_look(settings: Audit, num_looks: int) -> Audit:
    """The settings with the confidence that each of several looks must have."""
    missed = (1 - settings.estimation.confidence_fraction) / num_looks
    estimation = settings.estimation.model_copy(update={"confidence_fraction": 1 - missed})
    return settings.model_copy(update={"estimation": estimation})


def without_controls(settings: Audit) -> Audit:
    """Settings for later looks: the first one has aligned the controls."""
    none = {"num_control_utterances": 0, "num_dose_utterances": 0}
    return settings.model_copy(update={"calibration": settings.calibration.model_copy(update=none)})
