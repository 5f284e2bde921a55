"""64 small runs in one ``sweep`` against 64 runs of ``train`` in a row.

At most an eighth of the time is asked for on a GPU, and no more time on CPUs. Both ways compile
once and that counts: the runs in a row share one learning rate, those of the sweep have eight.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import jax
import numpy as np
import optax

import soaa_edu
from soaa_edu.data import Dataset

RATES = {"Adam": np.geomspace(1e-4, 1e-2, 8), "K-FAC": np.geomspace(3e-4, 3e-2, 8)}
KEYS = 8
IMAGES = 3_200
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 128, "evaluate": False}


def main() -> None:
    """Print seconds of both ways, for Adam and for K-FAC."""
    model = soaa_edu.models.mlp([784, 32, 10])
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    data = Dataset(train=soaa_edu.data.mnist(train_size=IMAGES).train)
    params = model.init(jax.random.key(0))

    def adam(learning_rate: Any) -> Any:
        return soaa_edu.first_order(objective, optax.adam(learning_rate))

    def kfac(learning_rate: Any) -> Any:
        return soaa_edu.kfac(objective, learning_rate=learning_rate, damping=1.0)

    steps = SETTINGS["epochs"] * (IMAGES // SETTINGS["batch_size"])
    print(f"mlp([784, 32, 10]), batch {SETTINGS['batch_size']}, 64 runs of {steps} steps")
    print(f"{'':6} train, s  sweep, s  times the first")
    for name, build in {"Adam": adam, "K-FAC": kfac}.items():
        in_a_row, swept = compare(build, RATES[name], params, data)
        print(f"{name:6} {in_a_row:8.2f} {swept:9.2f} {swept / in_a_row:9.3f}")


def compare(build: Callable, rates: np.ndarray, params: Any, data: Dataset) -> tuple[float, float]:
    """Seconds in a row and swept, once both ways gave the same losses where they run the same."""
    keys = jax.random.split(jax.random.key(1), len(rates) * KEYS)
    optimizer = build(rates[0])
    began = perf_counter()
    losses = [
        soaa_edu.train(optimizer, params, data, key=key, progress=False, **SETTINGS).loss
        for key in keys
    ]
    in_a_row = perf_counter() - began
    began = perf_counter()
    swept = soaa_edu.sweep(
        build, {"learning_rate": rates}, params, data, keys=keys[:KEYS], **SETTINGS
    )
    seconds = perf_counter() - began
    np.testing.assert_allclose(swept["loss"][0], losses[:KEYS], rtol=1e-2)
    return in_a_row, seconds
