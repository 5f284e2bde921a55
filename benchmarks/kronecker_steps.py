"""Steps of methods with Kronecker factors as multiples of Adam's, and those of other libraries."""

import subprocess
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import soaa_edu
from benchmarks.loops import compare

PEERS_PYTHON = Path("build/peers/bin/python")


def every_tenth(steps: jax.Array) -> jax.Array:
    """As many moves as a probability of 0.1 is expected to make, which 50 draws need not make."""
    return jnp.where(steps % 10 == 0, 1.0, 0.0)


def main() -> None:
    """Print both tables; the peers' comes from an environment of their own, if there is one."""
    objective = soaa_edu.Objective(
        soaa_edu.models.mlp([784, 256, 256, 10], jnp.tanh), soaa_edu.softmax_cross_entropy
    )
    transformations = {
        "Adam": optax.adam(1e-3),
        "Shampoo, roots every 10 (at most 6)": soaa_edu.shampoo(1e-3),
        "SOAP, basis every 10 (at most 5)": soaa_edu.soap(1e-3),
        "KL-Shampoo, basis every 10 (at most SOAP's)": soaa_edu.kl_shampoo(1e-3),
        "PSGD, P moved every 10 (at most 2.5)": soaa_edu.psgd(1e-3, update_probability=every_tenth),
    }
    optimizers = {
        name: soaa_edu.first_order(objective, transformation)
        for name, transformation in transformations.items()
    }
    optimizers["K-FAC, inverses every 10 (at most 4)"] = soaa_edu.kfac(
        objective, learning_rate=1e-2, damping=0.1
    )
    print("mlp([784, 256, 256, 10]) tanh, batch 512")
    compare(objective, 512, optimizers)
    print("the same, beside K-FAC with its inverses every 10")
    beside = {
        "K-FAC": soaa_edu.kfac,
        "EKFAC, bases and factors every 10 (at most 1.4)": soaa_edu.ekfac,
        "EKFAC, bases every 10, factors always": partial(soaa_edu.ekfac, update_every=1),
    }
    compare(
        objective,
        512,
        {name: make(objective, learning_rate=1e-2, damping=0.1) for name, make in beside.items()},
    )
    if not PEERS_PYTHON.exists():
        print("the peers' environment could not be set up: make bench says why")
        return
    print("the peers, with an older JAX, beside Adam in their own process")
    subprocess.run([PEERS_PYTHON, "-m", "benchmarks.kronecker_peers"], check=False)
