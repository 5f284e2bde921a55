"""The benchmark of a GPU, at sizes for a CPU, without its slowest parts."""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import classic_functions, gpu


def test_programs_compile_in_threads_and_what_fails_or_is_late_is_told(capsys):
    def late():
        time.sleep(3)

    calls = {
        ("sums", "one", "small"): lambda: partial(jnp.sum, jnp.ones(3)),
        ("sums", "two", "small"): lambda: 1 / 0,
        ("sums", "three", "small"): late,
    }
    timed = gpu.compiled(calls, patience=1.0)
    assert [found.trouble for found in timed.values()] == [
        "",
        "sums two small: division by zero",
        "some were not compiled in time",
    ]
    numbers = {key[1:]: gpu.seconds(found) for key, found in timed.items()}
    assert 0 < numbers["one", "small"] < 1
    gpu.show("sums", numbers)
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert lines[0].endswith("(  1.0)")
    assert [line.split() for line in lines[1:]] == [["two", "-"], ["three", "-"]]


def test_a_step_s_time_is_that_of_one_of_many():
    class Call:
        steps = 1000

        def __call__(self):
            return jnp.ones(())

    assert gpu.seconds(gpu.Timed(Call())) < 1e-3


def test_every_method_and_precision_is_asked_for():
    steps = gpu.steps_of_methods(gpu.SMALL)
    assert {method for _, method, _ in steps} == set(gpu.METHODS)
    assert len({table for table, _, _ in steps}) == 2
    precise = gpu.precisions(gpu.SMALL)
    assert {precision for _, precision, _ in precise} == {"highest", "high", "default"}


def test_a_root_is_timed_on_positive_definite_matrices():
    ((_, make), *_) = gpu.roots(gpu.SMALL).items()
    root = np.asarray(make()())
    assert np.isfinite(root).all()
    assert (np.linalg.eigvalsh(root) > 0).all()


@pytest.mark.parametrize("name", ["rosenbrock", "helical_valley", "wood"])
def test_a_trust_region_ends_where_scipys_does_in_half_as_many_iterations_more_at_most(name):
    residuals = getattr(classic_functions, name)
    with jax.enable_x64(True):
        start = jnp.asarray(classic_functions.FUNCTIONS[residuals])

        def f(x):
            return jnp.sum(jnp.square(jnp.array(residuals(x))))

        theirs, their_count = classic_functions.by_scipy(f, start)
        ours, our_count = classic_functions.by_trust_region(f, start, theirs)
    assert ours <= theirs + 1e-10
    assert our_count <= 1.5 * their_count
