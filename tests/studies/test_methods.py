import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soaa_edu import Objective, softmax_cross_entropy
from soaa_edu.data import Dataset
from soaa_edu.linear_solvers import polar_factor
from soaa_edu.models import decoder, mlp
from soaa_edu.studies import methods
from soaa_edu.studies.literature import muon
from soaa_edu.studies.poster import field, large_batch_race
from soaa_edu.studies.race import Task
from soaa_edu.studies.slides import gauss_newton_on_mnist
from soaa_edu.studies.soaa import soaa_ablation, soaa_race

RACES = {
    field: field.FIELD,
    large_batch_race: large_batch_race.FIELD,
    gauss_newton_on_mnist: gauss_newton_on_mnist.TUNED,
    muon: muon.FIELD,
    soaa_race: soaa_race.FIELD,
    soaa_ablation: soaa_ablation.TUNED,
}
SINGLE = {
    "newton": {"learning_rate": 0.1, "damping": 1.0},
    "hessian_free": {"damping": 1.0},
    "trust_region": {"radius": 0.1},
    "galore": {"learning_rate": 1e-3, "rank": 2},
    "ekfac": {"learning_rate": 0.1, "damping": 1.0},
    "gauss_newton_layers": {"damping": 1.0},
    "kl_shampoo": {"learning_rate": 1e-3},
    "sophia": {"learning_rate": 1e-3},
}


@pytest.fixture
def task(rng):
    x, y = rng.normal(size=(16, 6)).astype(np.float32), rng.integers(3, size=16)
    objective = Objective(mlp([6, 3]), softmax_cross_entropy)
    return Task({}, objective, lambda: Dataset(train=(x, y)), 16, 5, 8)


def losses(optimizer, task):
    """Before each of two steps on one batch."""
    batch = jax.tree.map(lambda array: jnp.asarray(array[:8]), task.load().train)
    params = task.init()

    def take(carry, key):
        params, state, info = optimizer.step(*carry, batch, key)
        return (params, state), info["loss"]

    keys = jax.random.split(jax.random.key(0))
    return jax.jit(lambda p: jax.lax.scan(take, (p, optimizer.init(p)), keys)[1])(params)


def test_every_method_has_a_name_and_a_look_of_its_own():
    looks = [tuple(look.values()) for look in methods.METHODS.values()]
    assert len(set(looks)) == len(looks)
    labels = [methods.label(method) for method in methods.METHODS]
    assert len(set(labels)) == len(labels)
    assert methods.label("soaa") == "SOAA"


@pytest.mark.parametrize("study, method", [(s, m) for s, field in RACES.items() for m in field])
def test_every_method_of_every_race_takes_a_step_downhill(study, method, task):
    point = {name: value for name, (value,) in study.grid(method, 1).items()}
    first, second = losses(study.build(method, task, **point), task)
    assert np.isfinite(first)
    assert second < first


@pytest.mark.parametrize("method", SINGLE)
def test_every_other_method_takes_a_step_downhill(method, task):
    first, second = losses(
        methods.build(method, task.objective, task.steps, **SINGLE[method]), task
    )
    assert second < first


def test_a_cosine_schedule_ends_with_the_run():
    steps = 10
    optimizer = methods.build("adam_cosine", lambda p, batch: p.sum(), steps, learning_rate=0.1)

    def update(carry, key):
        params, state, _ = optimizer.step(*carry, None, key)
        return (params, state), params[0] - carry[0][0]

    start, keys = jnp.ones(1), jax.random.split(jax.random.key(0), steps + 1)
    run = jax.jit(lambda: jax.lax.scan(update, (start, optimizer.init(start)), keys)[1])
    halves = (1 + np.cos(np.pi * np.arange(steps + 1) / steps)) / 2
    np.testing.assert_allclose(run(), -0.1 * halves, rtol=1e-4, atol=1e-6)


def test_muons_matrices_are_the_hidden_ones():
    model = decoder(7, width=4, depth=1, heads=2)
    params = model.init(jax.random.key(0))
    chosen = methods.hidden_matrices(model)(params)
    names = [layer for layer, leaves in chosen.items() if any(leaves.values())]
    assert sorted(names) == sorted(set(model.dense_layers) - {"embedding", "head"})


def test_shampoo_without_memory_moves_hidden_matrices_along_the_polar_factor(float64, rng):
    batch = jnp.asarray(rng.normal(size=(32, 5))), jnp.asarray(rng.integers(9, size=32))
    objective = Objective(mlp([5, 4, 9], jnp.tanh), softmax_cross_entropy)
    params = jax.tree.map(jnp.float64, objective.model.init(jax.random.key(0)))
    optimizer = methods.build("shampoo_without_memory", objective, 5, learning_rate=0.1)
    moved, *_ = optimizer.step(params, optimizer.init(params), batch, jax.random.key(0))
    gradient = jax.grad(objective)(params, batch)
    expected = 0.2 * np.sqrt(5) * polar_factor(gradient["dense_0"]["weight"])
    first, last = (
        (params[layer]["weight"] - moved[layer]["weight"]) / 0.1 for layer in ("dense_0", "dense_1")
    )
    np.testing.assert_allclose(first, expected, atol=1e-6)
    adam = optax.adam(-1.0, nesterov=True)
    head, _ = adam.update(gradient["dense_1"], adam.init(gradient["dense_1"]))
    np.testing.assert_allclose(last, head["weight"], atol=1e-6)
