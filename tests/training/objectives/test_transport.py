import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3di.training.objectives.transport import PartialTransport, partial_plan
from tests.references import transport as literal
from tests.training.objectives.rows import embeddings

AUTHOR = {"regularisation": 0.03, "mass": 0.95}


def costs(seed, rows, columns):
    return np.random.default_rng(seed).uniform(0, 1, (rows, columns))


sizes = st.integers(1, 7)
amounts = {"regularisation": st.floats(0.02, 2), "mass": st.floats(0.1, 1), "iterations": st.integers(1, 40)}


@given(st.integers(0, 99), sizes, sizes, st.fixed_dictionaries(amounts))
@settings(max_examples=40)
def test_every_iteration_is_the_literal_one(seed, rows, columns, options):
    cost = costs(seed, rows, columns)
    plan = partial_plan(torch.from_numpy(cost), **options).numpy()
    np.testing.assert_allclose(plan, literal.partial_plan(cost, **options), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("regularisation, mass, iterations", [(0.03, 0.95, 300), (0.1, 0.5, 50), (1.0, 1.0, 7)])
def test_the_plan_is_that_of_pot(regularisation, mass, iterations):
    solve = pytest.importorskip("ot.partial").entropic_partial_wasserstein
    cost = costs(3, 12, 9)
    rows, columns = np.full(12, 1 / 12), np.full(9, 1 / 9)
    theirs = solve(rows, columns, cost, reg=regularisation, m=mass, numItermax=iterations)
    plan = partial_plan(
        torch.from_numpy(cost), regularisation=regularisation, mass=mass, iterations=iterations
    ).numpy()
    np.testing.assert_allclose(plan, theirs, rtol=1e-9, atol=1e-15)


@given(st.integers(0, 99), sizes, sizes)
@settings(max_examples=15)
def test_a_plan_keeps_its_bounds(seed, rows, columns):
    cost = torch.from_numpy(costs(seed, rows, columns))
    plan = partial_plan(cost, regularisation=0.3, mass=0.95, iterations=300)
    assert plan.sum().item() == pytest.approx(0.95)
    assert (plan.sum(dim=1) <= (1 + 1e-6) / rows).all()
    assert (plan.sum(dim=0) <= (1 + 1e-6) / columns).all()


def test_costs_at_which_the_kernel_underflows_do_no_harm():
    cost = torch.full((4, 4), 100.0).fill_diagonal_(50.0)
    plan = partial_plan(cost, iterations=50, **AUTHOR)
    torch.testing.assert_close(plan, torch.eye(4) * 0.95 / 4)


def test_the_loss_is_the_literal_cost_of_the_literal_plan():
    loss = PartialTransport(8, iterations=30, **AUTHOR).double()
    torch.nn.init.normal_(loss.metric, generator=torch.Generator().manual_seed(0))
    weights = 8 * np.exp(loss.metric.detach().numpy()) / np.exp(loss.metric.detach().numpy()).sum()
    value = loss(embeddings(0), embeddings(1)).item()
    expected = literal.transport_cost(embeddings(0).numpy(), embeddings(1).numpy(), weights, iterations=30, **AUTHOR)
    assert value == pytest.approx(expected, rel=1e-9)


def test_the_gradient_is_that_of_the_penalised_optimum():
    loss = PartialTransport(4, regularisation=0.3, mass=0.8, iterations=500).double()
    predictions = embeddings(0, s=5, e=4).requires_grad_()
    loss(predictions, embeddings(1, s=5, e=4)).backward()

    def penalised(rows):
        units = [x / x.norm(dim=1, keepdim=True) for x in (rows, embeddings(1, s=5, e=4))]
        cost = 1 - units[0] @ units[1].T
        plan = partial_plan(cost, regularisation=0.3, mass=0.8, iterations=500)
        return (plan * cost).sum() + 0.3 * (plan * plan.log()).sum()

    base, numeric = predictions.detach(), torch.zeros(5, 4, dtype=torch.float64)
    for place in np.ndindex(5, 4):
        step = torch.zeros_like(base)
        step[place] = 1e-4
        numeric[place] = (penalised(base + step) - penalised(base - step)) / 2e-4
    torch.testing.assert_close(predictions.grad, numeric, rtol=1e-4, atol=1e-6)


def test_the_metric_starts_as_the_cosine_and_keeps_its_size():
    loss = PartialTransport(8, iterations=1, regularisation=0.03, mass=1.0).double()
    one = embeddings(0, s=1), embeddings(1, s=1)
    assert loss(*one).item() == pytest.approx(1 - torch.cosine_similarity(*one).item())
    torch.nn.init.constant_(loss.metric, -5.0)
    assert loss(*one).item() == pytest.approx(1 - torch.cosine_similarity(*one).item())


def test_it_does_not_know_which_target_belongs_to_which_prediction():
    loss = PartialTransport(8, iterations=100, **AUTHOR).double()
    shuffled = embeddings(1)[[3, 1, 0, 5, 4, 2]]
    assert loss(embeddings(0), shuffled).item() == pytest.approx(loss(embeddings(0), embeddings(1)).item())


def test_digits_are_kept_under_bf16_autocast():
    predictions, targets = embeddings(0, dtype=torch.float32), embeddings(1, dtype=torch.float32)
    loss = PartialTransport(8, iterations=30, **AUTHOR)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(predictions, targets)
    assert inside.item() == loss(predictions, targets).item()
    expected = literal.transport_cost(predictions.numpy(), targets.numpy(), np.ones(8), iterations=30, **AUTHOR)
    assert inside.item() == pytest.approx(expected, rel=1e-5)
