"""Logistic regression between right and wrong pairs, both kinds counted as equally frequent."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NEGLIGIBLE_PENALTY = 1e-6
"""Of the mean loss; keeps the solution finite when the kinds do not overlap, and changes nothing otherwise."""
SMALLEST_SPREAD = 1e-9
"""Relative to the values: less is rounding."""
MAX_STEPS = 50
MAX_STEP = 5.0
CONVERGED = 1e-9
PRINTED_DIGITS = 6


class Logistic(NamedTuple):
    weights: tuple[float, ...]
    """[num_features] per unit of the feature as it was given."""
    intercept: float
    ranges: tuple[tuple[float, float], ...] | None = None
    """[num_features] least and largest value; a feature beyond counts as the nearer one. None: unlimited."""

    def as_printed(self) -> "Logistic":
        """With as many digits as a report has, so that whoever reads it judges as the audit did."""
        ranges = self.ranges and tuple(
            (round(low, PRINTED_DIGITS), round(high, PRINTED_DIGITS)) for low, high in self.ranges
        )
        weights = tuple(round(one, PRINTED_DIGITS) for one in self.weights)
        return Logistic(weights, round(self.intercept, PRINTED_DIGITS), ranges)

    def within(self, taught: Floats) -> "Logistic":
        """Limited to what the taught features [num_pairs, num_features] range over: a line fitted to them says nothing
        about values far outside."""
        lowest, highest = taught.min(axis=0).tolist(), taught.max(axis=0).tolist()
        return self._replace(ranges=tuple(zip(lowest, highest, strict=True)))

    def logit(self, features: Floats) -> Floats:
        """
        Args:
            features: [num_pairs, num_features].

        Returns:
            [num_pairs]; above 0 where a right pair is likelier than a wrong one.
        """
        if self.ranges is not None:
            features = np.clip(features, *np.array(self.ranges).T)
        return np.asarray(features @ np.array(self.weights) + self.intercept)

    def probability(self, features: Floats) -> Floats:
        """P(right) under even odds; [num_pairs]."""
        return _sigmoid(self.logit(features))


def fit_logistic(right: Floats, wrong: Floats, penalty: float = NEGLIGIBLE_PENALTY) -> Logistic:
    """Newton's method on the weighted log loss, with Platt's smoothed targets and an L2 penalty.

    Each kind has half of the weight. Features are standardised before the penalty applies, so their units do not
    matter; a feature that never changes gets no weight.

    Args:
        right, wrong: [num_pairs, num_features] of either kind, at least one pair each.
        penalty: half of it times the squared weights (of standardised features) is added to the mean loss.
    """
    features = np.concatenate([right, wrong])
    centre, spread = features.mean(axis=0), features.std(axis=0)
    varies = spread > SMALLEST_SPREAD * np.maximum(1.0, np.abs(centre))
    scale = np.where(varies, spread, 1.0)
    design = np.column_stack([(features - centre) / scale, np.ones(len(features))])
    sizes = len(right), len(wrong)
    targets = np.repeat([1 - 1 / (sizes[0] + 2), 1 / (sizes[1] + 2)], sizes)
    weights = np.repeat([0.5 / sizes[0], 0.5 / sizes[1]], sizes)
    penalties = np.full(design.shape[1], penalty)
    penalties[-1] = NEGLIGIBLE_PENALTY
    parameters = np.zeros(design.shape[1])
    for _ in range(MAX_STEPS):
        predicted = _sigmoid(design @ parameters)
        gradient = design.T @ (weights * (predicted - targets)) + penalties * parameters
        curvature = (design.T * (weights * predicted * (1 - predicted))) @ design + np.diag(penalties)
        step = np.linalg.solve(curvature, gradient)
        parameters -= step * min(1.0, MAX_STEP / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < CONVERGED:
            break
    slopes = np.where(varies, parameters[:-1] / scale, 0.0)
    return Logistic(tuple(slopes.tolist()), float(parameters[-1] - slopes @ centre))


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -500, 500))))
