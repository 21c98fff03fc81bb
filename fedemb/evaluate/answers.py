"""What a model says of records that have one of a few labels each, and what is believed of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_expit, log_softmax, logsumexp

from fedemb.evaluate.fine_bins import REACH
from fedemb.types import Float, Int64

LOWEST = -1e5  # of log probabilities: sums of what is smaller would leave 64 bits


@dataclass(frozen=True)
class Answers:
    """Probabilities of every label, and the label whose probability is to be trusted or not.

    Attributes:
        log_p: ``(records, labels)`` float64 log probabilities.
        truth: ``(records,)``.
        believed: ``(records,)`` label: the most probable one; ``true``, where things are true or false.
    """

    log_p: Float
    truth: Int64
    believed: Int64

    @staticmethod
    def top_label(scores: Float, truth: Int64) -> Answers:
        """Of records with one of several labels.

        Args:
            scores: ``(records, labels)`` log probabilities up to a constant.
            truth: ``(records,)``.

        Raises:
            ValueError: If a score is no number.
        """
        check_finite(scores)
        log_p = np.maximum(log_softmax(np.asarray(scores, dtype=np.float64), axis=1), LOWEST)
        return Answers(log_p, np.asarray(truth, dtype=np.int64), log_p.argmax(1))

    @staticmethod
    def true_or_false(log_odds: Float, truth: Int64) -> Answers:
        """Of things that are true or not, given the log odds ``(records,)`` that they are.

        Raises:
            ValueError: If log odds are no number.
        """
        check_finite(log_odds)
        both = log_expit(np.stack((-log_odds, log_odds), axis=1).astype(np.float64))
        return Answers(
            np.maximum(both, LOWEST), np.asarray(truth, dtype=np.int64), np.ones(len(both), dtype=np.int64)
        )

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def hit(self) -> Int64:
        """``(records,)`` 1 where what is believed is so, else 0."""
        return np.asarray(self.believed == self.truth, dtype=np.int64)

    @property
    def log_odds(self) -> Float:
        """``(records,)`` of what is believed, at most ``REACH`` away from zero."""
        own, others = self.log_p[self._lines, self.believed], self.log_p.copy()
        others[self._lines, self.believed] = -np.inf
        rest = logsumexp(others, axis=1) if others.shape[1] > 1 else np.full(len(self), -np.inf)
        return np.asarray(np.clip(own - rest, -REACH, REACH))

    @property
    def _lines(self) -> Int64:
        return np.arange(len(self), dtype=np.int64)

    def sharpened(self, inverse_temperature: float) -> Answers:
        """The same with all log probabilities multiplied, and probabilities that add up to 1 again."""
        log_p = np.maximum(log_softmax(self.log_p * inverse_temperature, axis=1), LOWEST)
        return Answers(log_p, self.truth, self.believed)

    def losses(self, log_odds: Float) -> tuple[Float, Float]:
        """Negative log likelihood and Brier score ``(records,)`` if what is believed has these log odds.

        The other labels share what is left of the probability as they did. The Brier score is the sum over labels of
        squared differences; half of that where there are two labels, as for events that happen or not.

        Args:
            log_odds: ``(records,)``.

        Reference: Brier, "Verification of Forecasts Expressed in Terms of Probability", 1950.
        """
        hit, before = self.hit, self.log_odds
        left = log_expit(-log_odds) - log_expit(-before)  # log of the factor of all other probabilities
        log_true = self.log_p[self._lines, self.truth]
        nll = -np.where(hit, log_expit(log_odds), log_true + left)
        others = self.log_p + left[:, None]
        others[self._lines, self.believed] = -np.inf
        others = np.exp(others)
        others[self._lines, self.truth] -= 1 - hit
        brier = (expit(log_odds) - hit) ** 2 + (others**2).sum(1)
        return np.asarray(nll), np.asarray(brier / 2 if self.log_p.shape[1] == 2 else brier)


def check_finite(scores: Float) -> None:
    """Refuses scores that are no numbers.

    Raises:
        ValueError: If there are any.
    """
    wrong = ~np.isfinite(scores)
    if wrong.any():
        lines = int(wrong.reshape(len(scores), -1).any(1).sum())
        raise ValueError(
            f"scores must be numbers to be calibrated, got NaN or infinity in {lines} of {len(scores)} records; "
            "the model diverged: lower train.learning_rate"
        )
