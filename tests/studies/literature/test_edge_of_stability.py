import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from soaa_edu import Objective, squared_error, studies
from soaa_edu.curvature import dense, hessian_matvec
from soaa_edu.studies.literature import edge_of_stability as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN, YES

SETTINGS = study.Settings(
    images=24,
    hidden=3,
    rates=(0.5,),
    adam_rates=(0.01,),
    time=20.0,
    adam_steps=40,
    stretches=4,
    iterations=12,
    seeds=3,
    minutes=0.0,
)


@pytest.fixture
def results(made_up):
    """Made-up results: curvature over the edge at the end, shares of rising steps, and last losses.

    Each is the same for all seeds, or there is one for each. Runs rest at twice the last ratio in
    their first half, and end at a loss of ``last`` from one of 1 in the middle.
    """

    def make(gradient_descent=1.02, adam=0.98, rising=0.3, last=0.5, seeds=3):
        cells = {}
        for method in study.METHODS:
            ratio = adam if method == "adam" else gradient_descent
            for rate in study.rates(SETTINGS, method):
                given = (np.broadcast_to(each, seeds) for each in (ratio, rising, last))
                for seed, (ratio_of, rising_of, last_of) in enumerate(zip(*given, strict=True)):
                    curve = np.array([2, 2, 1, 1]) * ratio_of * study.edge(method, rate)
                    key = "preconditioned" if method == "adam" else "sharpness"
                    cells[f"method={method} rate={rate} seed={seed}"] = {
                        "steps": 40,
                        "start": study.edge(method, rate) / 3,
                        "sharpness": np.ones(4),
                        "loss": [2, 1.5, 1, last_of],
                        "rising": [0, 0, rising_of, rising_of],
                        key: curve,
                    }
        return made_up("edge_of_stability", cells, SETTINGS)

    return make


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"adam": 0.8}, IN_PART),
        ({"adam": [0.8, 1.0, 1.2]}, IN_PART),
        ({"rising": 0.0}, IN_PART),
        ({"last": 1.0}, IN_PART),
        ({"last": 1.5}, IN_PART),
        ({"gradient_descent": 0.7}, DOES_NOT_HOLD),
        ({"gradient_descent": 1.3}, DOES_NOT_HOLD),
        ({"gradient_descent": [0.8, 1.0, 1.2]}, OPEN),
        ({"seeds": 2}, OPEN),
    ],
)
def test_l7_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes)) == {"L7": answer}


def test_the_first_half_of_training_does_not_count(results):
    (verdict,) = studies.verdicts(results(gradient_descent=1.05))
    (reading,) = verdict.clauses[0].readings
    np.testing.assert_allclose(np.exp(reading.interval), 1.05)
    assert reading.answer == YES
    assert any("over that of the start 3.15 ± 0.00" in found for found in verdict.findings)


def test_the_table_has_a_row_for_each_method_and_rate(results):
    lines = study.table(results()).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["Gradient descent", "Adam", "SGD"]
    assert "0.980 ± 0.000" in lines[2]
    assert "3,800" in lines[2]


def test_the_figure_has_curvature_above_the_loss_and_the_edge_in_it(draw, results):
    drawing = draw(results())
    above, below = np.array(drawing.axes).reshape(2, 3)
    assert [axes.get_title() for axes in above] == ["Gradient descent", "Adam", "SGD"]
    for axes in above:
        np.testing.assert_array_equal(axes.lines[1].get_ydata(), [1, 1])
    np.testing.assert_allclose(above[1].lines[0].get_ydata(), 0.98 * np.array([2, 2, 1, 1]))
    np.testing.assert_allclose(below[0].lines[0].get_ydata(), [2, 1.5, 1, 0.5])


@pytest.mark.parametrize("method", ["gradient_descent", "adam"])
@pytest.mark.parametrize("factor, grows", [(0.99, False), (1.01, True)])
def test_a_quadratic_is_unstable_just_above_the_edge(method, factor, grows):
    """Adam with √v̂ held at one is θ ← θ - η m, m ← β₁ m + (1 - β₁) λ θ."""
    rate, decay = 0.1, study.B1 if method == "adam" else 0.0
    curvature = factor * study.edge(method, rate)
    gain = (1 - decay) * curvature
    step = np.array([[1 - rate * gain, -rate * decay], [gain, decay]])
    assert (np.abs(np.linalg.eigvals(step)).max() > 1) == grows


def test_at_the_usual_b1_adams_edge_is_38_over_the_rate():
    assert study.edge("adam", 0.5) == pytest.approx(38 / 0.5)
    assert study.edge("sgd", 0.5) == 4


@pytest.fixture(scope="module")
def after_three_steps():
    """A small network after three steps of Adam: its loss, parameters, state and gradients."""
    batch = study.digits(SETTINGS.images)
    model = study.network(3)
    loss = jax.jit(lambda p: Objective(model, squared_error)(p, batch))
    optimizer = study.transformation("adam", 0.01)
    params = model.init(jax.random.key(1))
    state, gradients = optimizer.init(params), []
    for _ in range(3):
        gradients.append(jax.grad(loss)(params))
        updates, state = optimizer.update(gradients[-1], state)
        params = optax.apply_updates(params, updates)
    return loss, params, state, [np.asarray(ravel_pytree(g)[0], float) for g in gradients]


def test_the_preconditioner_is_the_root_of_the_corrected_average_of_squares(after_three_steps):
    _, _, state, gradients = after_three_steps
    v = np.zeros_like(gradients[0])
    for g in gradients:
        v = 0.999 * v + 0.001 * g**2
    expected = np.sqrt(v / (1 - 0.999**3)) + 1e-8
    found = ravel_pytree(study.preconditioner(state))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_lanczos_finds_the_largest_eigenvalue_of_the_preconditioned_hessian(after_three_steps):
    loss, params, state, _ = after_three_steps

    @jax.jit
    def measure(params, diagonal):
        matvec = hessian_matvec(loss, params)
        scaled = study.preconditioned(matvec, diagonal)
        return dense(matvec, params), study.largest(scaled, params, 40)

    with jax.enable_x64(True):
        given = params, study.preconditioner(state)
        given = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), given)
        matrix, found = measure(*given)
        products = np.asarray(matrix) / np.asarray(ravel_pytree(given[1])[0])[:, None]
    exact = np.linalg.eigvals(products).real.max()
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_the_digits_are_centred_and_a_tenth_of_their_spread():
    inputs, targets = study.digits(50)
    assert (inputs.shape, targets.shape) == ((50, 196), (50, 10))
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-6)
    assert float(inputs.std()) == pytest.approx(0.1, rel=1e-4)
    np.testing.assert_array_equal(targets.sum(axis=1), 1)


@pytest.fixture(scope="module")
def cells():
    return study.cells(SETTINGS)


def test_gradient_descent_is_what_a_plain_loop_does(cells):
    told = cells["method=gradient_descent rate=0.5 seed=1"]()
    batch = study.digits(SETTINGS.images)
    objective = Objective(study.network(3), squared_error)
    value_and_grad = jax.jit(jax.value_and_grad(lambda p: objective(p, batch)))
    key, _ = jax.random.split(jax.random.key(study.FIRST_SEED + 1))
    params, losses = study.network(3).init(key), []
    for _ in range(40):
        loss, gradient = value_and_grad(params)
        losses.append(float(loss))
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient)
    rises = np.diff(losses, prepend=np.inf) > 0
    assert told["steps"] == 40
    np.testing.assert_allclose(told["loss"], np.reshape(losses, (4, 10)).mean(axis=1), rtol=1e-4)
    np.testing.assert_allclose(told["rising"], np.reshape(rises, (4, 10)).mean(axis=1), atol=1e-6)


def test_adam_tells_its_preconditioned_sharpness_as_well(cells):
    told = cells["method=adam rate=0.01 seed=0"]()
    assert told["preconditioned"].shape == told["sharpness"].shape == (4,)
    assert np.all(told["preconditioned"] > 10 * told["sharpness"])
    assert np.all(np.diff(told["loss"]) < 0)


def test_runs_of_a_seed_begin_alike(cells):
    methods = ("gradient_descent", "sgd")
    first, second = (cells[f"method={m} rate=0.5 seed=1"]()["start"] for m in methods)
    assert float(first) == pytest.approx(float(second), rel=1e-5)
