"""Classification metrics written down literally: pair by pair, case by case, bin by bin."""

import math


def auc_of(scores, positives):
    """Share of (positive, negative) pairs in the right order, equal scores counted half."""
    wins, pairs = 0.0, 0
    for score, positive in zip(scores, positives, strict=True):
        for other, other_positive in zip(scores, positives, strict=True):
            if positive and not other_positive:
                pairs += 1
                wins += 1.0 if score > other else 0.5 if score == other else 0.0
    return wins / pairs if pairs else math.nan


def calibration_error(probabilities, targets, num_bins):
    """Expected calibration error over bins (low, high]; a confidence of 0 would belong to the first."""
    total = 0.0
    for number in range(num_bins):
        confidences, hits = [], []
        for row, target in zip(probabilities, targets, strict=True):
            confidence = max(row)
            if number / num_bins < confidence <= (number + 1) / num_bins:
                confidences.append(confidence)
                hits.append(list(row).index(confidence) == target)
        if hits:
            total += abs(sum(hits) - sum(confidences)) / len(targets)
    return total
