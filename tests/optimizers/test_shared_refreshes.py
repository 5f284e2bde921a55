"""Runs side by side renew their preconditioners together, and no more often than alone."""

import jax
import jax.numpy as jnp
import pytest
from jaxprs import operations

import soaa_edu

EXPENSIVE = {"eigh", "cholesky", "qr", "geqrf", "householder_product", "triangular_solve"}
MODEL = soaa_edu.models.mlp([6, 4, 3])
OBJECTIVE = soaa_edu.Objective(MODEL, soaa_edu.softmax_cross_entropy)


def first_order(method, **options):
    return lambda rate: soaa_edu.first_order(OBJECTIVE, method(rate, **options))


BUILDERS = {
    "ekfac": lambda rate: soaa_edu.ekfac(OBJECTIVE, learning_rate=rate, damping=rate),
    "galore": first_order(soaa_edu.galore, rank=2, refresh_every=7),
    "kfac": lambda rate: soaa_edu.kfac(OBJECTIVE, learning_rate=rate, damping=rate),
    "kfac by eigenvectors": lambda rate: soaa_edu.kfac(
        OBJECTIVE, learning_rate=0.1, damping=soaa_edu.levenberg_marquardt(rate)
    ),
    "kl shampoo": first_order(soaa_edu.kl_shampoo),
    "psgd": first_order(soaa_edu.psgd),
    "shampoo": first_order(soaa_edu.shampoo),
    "shampoo on a schedule": first_order(
        soaa_edu.shampoo, refresh_every=lambda steps: jnp.where(steps < 9, 1, 5)
    ),
    "shampoo at intervals of their own": lambda rate: soaa_edu.first_order(
        OBJECTIVE, soaa_edu.shampoo(0.1, refresh_every=lambda steps: 50 * rate)
    ),
    "soap": first_order(soaa_edu.soap),
}


def conditions(function, *arguments):
    """Behind how many conditions each expensive operation of every step stands."""
    return [
        outer[outer.index("scan") :].count("cond")
        for equation, outer in operations(function, *arguments)
        if equation.primitive.name in EXPENSIVE
    ]


@pytest.mark.parametrize("name", BUILDERS)
def test_a_refresh_stays_behind_its_condition_in_runs_side_by_side(name):
    batch = jnp.ones((5, 6)), jnp.arange(5) % 3

    def run(rate, key):
        optimizer = BUILDERS[name](rate)
        params = MODEL.init(key)

        def step(carry, key):
            params, state, info = optimizer.step(*carry, batch, key)
            return (params, state), info["loss"]

        start = (params, optimizer.init(params))
        return jax.lax.scan(step, start, jax.random.split(key, 30))[1]

    rates, keys = jnp.array([0.1, 0.2]), jax.random.split(jax.random.key(0), 2)
    alone = conditions(run, rates[0], keys[0])
    assert min(alone) > 0
    assert conditions(jax.vmap(run), rates, keys) == alone
