"""Steps of Adam's relatives as multiples of Adam's own, and the bytes of their states."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import soaa_edu
from benchmarks.loops import STEPS, compare
from benchmarks.timing import in_turn, table
from soaa_edu.data import text


def main() -> None:
    """Print steps and states for the MLP, then steps for a decoder."""
    model = soaa_edu.models.mlp([784, 256, 256, 10], jnp.tanh)
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    transformations = {
        "Adam": optax.adam(1e-3),
        "8-bit Adam (at most 2.0)": soaa_edu.adam_8bit(1e-3),
        "GaLore, rank 64, one refresh (at most 1.2)": soaa_edu.galore(1e-3),
        "SOAA (at most 1.15)": soaa_edu.soaa(1e-3, total_steps=STEPS),
    }
    print("mlp([784, 256, 256, 10]) tanh, batch 512")
    compare(
        objective,
        512,
        {
            name: soaa_edu.first_order(objective, transformation)
            for name, transformation in transformations.items()
        },
    )
    params = jax.eval_shape(model.init, jax.random.key(0))
    sizes = {name: state_bytes(t, params) for name, t in transformations.items()}
    width = max(map(len, sizes))
    print(f"{'':{width}} state bytes  times the first (8-bit Adam at most 0.27)")
    for name, size in sizes.items():
        print(f"{name:{width}} {size:11,} {size / sizes['Adam']:9.3f}")

    compare_on_decoder()


def compare_on_decoder() -> None:
    """Print a single step of SOAA beside Adam's on ten million parameters and 16,384 tokens."""
    model = soaa_edu.models.decoder(text.VOCABULARY, width=384, depth=6)
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    batch = jax.tree.map(jnp.asarray, text.synthetic(64 * 256, length=256).train)
    params = model.init(jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"\ndecoder of {count:,} parameters, {batch[0].size:,} tokens a step")

    def call(transformation: optax.GradientTransformation) -> Any:
        optimizer = soaa_edu.first_order(objective, transformation)
        state = optimizer.init(params)
        step = jax.jit(optimizer.step)
        return lambda: step(params, state, batch, jax.random.key(0))

    rules = {"Adam": optax.adam(1e-3), "SOAA (at most 1.15)": soaa_edu.soaa(1e-3, total_steps=10)}
    table(in_turn({name: call(rule) for name, rule in rules.items()}, rounds=3))


def state_bytes(transformation: optax.GradientTransformation, params: Any) -> int:
    """Of the state's arrays."""
    state = jax.eval_shape(transformation.init, params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
