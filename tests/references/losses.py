"""The losses written down literally, pair by pair and voxel by voxel, in numpy's float64."""

import math

import numpy as np


def info_nce(predictions, targets, scale, duplicate=None):
    """Mean of -log p(own target | prediction) and -log p(own prediction | target)."""
    p, t = _unit(predictions), _unit(targets)
    s, total = len(p), 0.0
    for i in range(s):
        rivals = [j for j in range(s) if j == i or duplicate is None or not duplicate[i][j]]
        total -= math.log(_share(scale, p[i] @ t[i], [p[i] @ t[j] for j in rivals]))
        rivals = [j for j in range(s) if j == i or duplicate is None or not duplicate[j][i]]
        total -= math.log(_share(scale, p[i] @ t[i], [p[j] @ t[i] for j in rivals]))
    return total / (2 * s)


def sigmoid(predictions, targets, scale, bias, duplicate=None):
    """-log of the judgement of each pair, own or foreign, summed and divided by the number of rows."""
    p, t = _unit(predictions), _unit(targets)
    s, total = len(p), 0.0
    for i in range(s):
        for j in range(s):
            if i != j and duplicate is not None and duplicate[i][j]:
                continue
            sign = 1 if i == j else -1
            total += math.log(1 + math.exp(-sign * (scale * p[i] @ t[j] + bias)))
    return total / s


def soft_info_nce(predictions, targets, scale, *, share, temperature, duplicate=None):
    """InfoNCE, of which a share is the cross-entropy with the teacher's similarities."""
    p, t = _unit(predictions), _unit(targets)
    s, total = len(p), 0.0
    for i in range(s):
        likeness = [math.exp(t[i] @ t[j] / temperature) for j in range(s)]
        for j in range(s):
            wanted = likeness[j] / sum(likeness)
            total -= wanted * math.log(_share(scale, p[i] @ t[j], [p[i] @ t[k] for k in range(s)]))
            total -= wanted * math.log(_share(scale, p[j] @ t[i], [p[k] @ t[i] for k in range(s)]))
    return (1 - share) * info_nce(predictions, targets, scale, duplicate) + share * total / (2 * s)


def dice_cross_entropy(logits, labels):
    """(Dice loss + cross-entropy) / 2: logits (b, c, d, h, w), labels (b, d, h, w)."""
    num_classes = logits.shape[1]
    overlap, predicted, true, surprise = np.zeros(num_classes), np.zeros(num_classes), np.zeros(num_classes), 0.0
    for place in np.ndindex(*labels.shape):
        scores = logits[(place[0], slice(None), *place[1:])].astype(np.float64)
        probability = np.exp(scores) / np.exp(scores).sum()
        label = labels[place]
        overlap[label] += probability[label]
        true[label] += 1
        predicted += probability
        surprise -= math.log(probability[label])
    losses = [1 - 2 * overlap[c] / (predicted[c] + true[c]) for c in range(1, num_classes) if true[c]]
    dice = sum(losses) / len(losses) if losses else 0.0
    return (dice + surprise / labels.size) / 2


def _unit(rows):
    rows = np.asarray(rows, np.float64)
    return rows / np.sqrt((rows**2).sum(1, keepdims=True))


def _share(scale, own, rivals):
    return math.exp(scale * own) / sum(math.exp(scale * r) for r in rivals)
