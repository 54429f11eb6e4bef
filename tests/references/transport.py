"""Partial optimal transport written down literally: the multiplicative iteration on the whole plan."""

import numpy as np


def transport_cost(predictions, targets, weights, *, regularisation, mass, iterations):
    """Cost of the plan; a pair costs half the weighted squared distance of its unit vectors."""
    s = len(predictions)
    cost = np.zeros((s, s))
    for i in range(s):
        for j in range(s):
            p = predictions[i] / np.linalg.norm(predictions[i])
            t = targets[j] / np.linalg.norm(targets[j])
            cost[i, j] = sum(w * (x - y) ** 2 for w, x, y in zip(weights, p, t, strict=True)) / 2
    plan = partial_plan(cost, regularisation=regularisation, mass=mass, iterations=iterations)
    return (plan * cost).sum()


def partial_plan(cost, *, regularisation, mass, iterations):
    """Dykstra's algorithm for three projections, each with its own correction (Benamou et al. 2015, prop. 5)."""
    rows, columns = cost.shape
    plan = np.exp(-cost / regularisation)
    plan *= mass / plan.sum()
    corrections = [np.ones_like(plan) for _ in range(3)]
    for _ in range(iterations):
        for number, project in enumerate((_rows_at_most(1 / rows), _columns_at_most(1 / columns), _whole_is(mass))):
            corrected = plan * corrections[number]
            projected = project(corrected)
            corrections[number] *= plan / projected
            plan = projected
    return plan


def _rows_at_most(most):
    return lambda plan: plan * np.minimum(most / plan.sum(axis=1, keepdims=True), 1)


def _columns_at_most(most):
    return lambda plan: plan * np.minimum(most / plan.sum(axis=0, keepdims=True), 1)


def _whole_is(mass):
    return lambda plan: plan * mass / plan.sum()
