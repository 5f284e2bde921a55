"""One of two processes that train together; ``test_mesh.py`` starts both.

python two_processes.py PORT PROCESS FOLDER
"""

import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from soaa_edu import Objective, kfac, softmax_cross_entropy, sweep, train
from soaa_edu.data import Dataset
from soaa_edu.models import mlp

OBJECTIVE = Objective(mlp([3, 4]), softmax_cross_entropy)
SETTINGS = {"epochs": 2, "batch_size": 16}


def build(learning_rate):
    return kfac(OBJECTIVE, learning_rate=learning_rate, damping=0.1, invert_every=2)


def told(mesh):
    """What a run and a sweep of six runs tell."""
    rng = np.random.default_rng(0)
    data = Dataset(*((rng.normal(size=(n, 3)), rng.integers(4, size=n)) for n in (32, 5)))
    keys = jax.random.split(jax.random.key(1), 3)
    start = OBJECTIVE.model.init(keys[0])
    run = train(build(0.1), start, data, key=keys[0], progress=False, mesh=mesh, **SETTINGS)
    rates = {"learning_rate": [0.1, 0.3]}
    swept = sweep(build, rates, OBJECTIVE.model.init, data, keys=keys, mesh=mesh, **SETTINGS)
    weight = np.asarray(run.params["dense_0"]["weight"])
    return {"loss": run.loss, "test_loss": run.test_loss, "weight": weight, "swept": swept["loss"]}


if __name__ == "__main__":
    port, process, folder = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    assert (jax.device_count(), jax.local_device_count()) == (2, 1)
    np.savez(Path(folder) / process, **told(Mesh(np.array(jax.devices()), ("devices",))))
