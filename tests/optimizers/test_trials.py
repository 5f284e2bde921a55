import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soaa_edu import levenberg_marquardt
from soaa_edu.optimizers.trials import adapt, next_damping, predicted_decrease, try_step

NOTHING = (None, None)


def parabola(params, batch):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def test_the_predicted_decrease_is_the_quadratic_models(float64, rng):
    matrix = rng.normal(size=(6, 6))
    matrix, gradient, step = matrix + matrix.T, rng.normal(size=6), rng.normal(size=6)

    def tree(v):
        return {"a": v[:2], "b": (v[2:],)}

    def matvec(v):
        return tree(jnp.asarray(matrix) @ jnp.concatenate([v["a"], *v["b"]]))

    found = predicted_decrease(matvec, tree(gradient), tree(step))
    assert found == pytest.approx(-(gradient @ step + 0.5 * step @ matrix @ step), rel=1e-13)


@pytest.mark.parametrize(
    "step, predicted, after, ratio, accepted",
    [
        (-1.0, 6.0, 1.0, 0.5, True),
        (-1.0, 1.0, 1.0, 3.0, True),
        (-4.0, 1.0, -2.0, 0.0, True),
        (1.0, 5.0, 2.0, -1.0, False),
        (-1.0, 0.0, 2.0, -np.inf, False),
        (-1.0, -1.0, 2.0, -np.inf, False),
        (-1.0, np.nan, 2.0, -np.inf, False),
        (0.0, 0.0, 2.0, -np.inf, False),
        (np.nan, 1.0, 2.0, -np.inf, False),
        (np.inf, 1.0, 2.0, -np.inf, False),
    ],
)
def test_a_step_is_kept_where_a_decrease_was_predicted_and_the_loss_did_not_rise(
    step, predicted, after, ratio, accepted
):
    trial = try_step(
        parabola, jnp.array([2.0]), NOTHING, 4.0, jnp.ones(1), jnp.array([step]), predicted
    )
    np.testing.assert_array_equal(trial.params, [after])
    assert trial.reduction_ratio == pytest.approx(ratio)
    assert bool(trial.accepted) is accepted


def test_a_loss_of_nan_after_the_step_rejects_it():
    start, gradient, step = jnp.array(1.0), jnp.array(1.0), jnp.array(-2.0)
    trial = try_step(lambda p, batch: jnp.log(p), start, NOTHING, 0.0, gradient, step, 1.0)
    assert (trial.params, trial.reduction_ratio, trial.accepted) == (1.0, -np.inf, False)


def test_a_trial_keeps_the_form_and_the_type_of_the_parameters():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": [jnp.zeros(())]}
    step = jax.tree.map(lambda p: -0.5 * jnp.ones(p.shape), params)
    trial = try_step(parabola, params, NOTHING, 2.0, params, step, 1.0)
    assert [p.dtype for p in jax.tree.leaves(trial.params)] == [jnp.bfloat16, np.float32]
    assert trial.reduction_ratio == pytest.approx(2.0 - 0.5 - 0.25)


@pytest.mark.parametrize(
    "ratio, factor",
    [
        (-np.inf, 1.5),
        (-1.0, 1.5),
        (0.2499, 1.5),
        (0.25, 1.0),
        (0.5, 1.0),
        (0.75, 1.0),
        (0.7501, 2 / 3),
        (9.0, 2 / 3),
    ],
)
def test_damping_grows_after_bad_steps_and_shrinks_after_good_ones(ratio, factor):
    found = adapt(levenberg_marquardt(1.0), jnp.float32(8.0), jnp.float32(ratio))
    assert found == pytest.approx(8 * factor, rel=1e-6)
    assert found.dtype == np.float32


def test_the_rules_numbers_can_be_chosen():
    rule = levenberg_marquardt(1.0, decrease=0.1, increase=10.0, low=0.0, high=0.5)
    found = [adapt(rule, jnp.float32(1), jnp.float32(ratio)) for ratio in (-0.1, 0.1, 0.6)]
    np.testing.assert_allclose(found, [10, 1, 0.1], rtol=1e-6)


def test_damping_never_shrinks_so_far_that_it_cannot_grow_again():
    rule = levenberg_marquardt(1.0)
    least = jax.lax.fori_loop(0, 500, lambda _, d: adapt(rule, d, jnp.float32(1)), jnp.float32(1))
    assert 0 < least < 1e-30
    grown = jax.lax.fori_loop(0, 500, lambda _, d: adapt(rule, d, jnp.float32(0)), least)
    assert grown > 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"initial": 0.0}, "initial must be a finite number above zero, got 0"),
        ({"initial": -1.0}, "initial must be a finite number above zero, got -1"),
        ({"initial": np.nan}, "initial must be a finite number above zero, got nan"),
        ({"decrease": 1.0}, "decrease must be below one and increase above, got 1 and 1.5"),
        ({"decrease": 0.0}, "decrease must be below one and increase above"),
        ({"increase": 1.0}, "decrease must be below one and increase above"),
        ({"low": 0.75}, "low must be below high, got 0.75 and 0.75"),
        ({"high": np.nan}, "low must be below high"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        levenberg_marquardt(**({"initial": 1.0} | options))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_damping_keeps_its_type_and_stays_within_it(dtype):
    rule = levenberg_marquardt(1.0)
    fair = adapt(rule, jnp.asarray(8.0, dtype), jnp.asarray(0.5, dtype))
    assert (float(fair), fair.dtype) == (8.0, dtype)
    for ratio in (-1.0, 1.0):
        damping = jax.lax.fori_loop(
            0, 2000, lambda _, d, ratio=ratio: adapt(rule, d, jnp.float32(ratio)), fair
        )
        assert 0 < float(damping) < float(jnp.finfo(dtype).max)


def tried(loss=4.0, gradient=1.0, step=-1.0, predicted=6.0):
    gradient, step = jnp.array([gradient]), jnp.array([step])
    return try_step(
        parabola, jnp.array([2.0]), NOTHING, jnp.float32(loss), gradient, step, predicted
    )


@pytest.mark.parametrize(
    "given", [{"loss": np.nan}, {"gradient": np.nan}, {"gradient": 0.0, "predicted": 0.0}]
)
def test_what_teaches_nothing_leaves_the_damping(given):
    rule = levenberg_marquardt(1.0)
    assert next_damping(rule, jnp.float32(8.0), tried(**given)) == 8.0


@pytest.mark.parametrize("damping, expected", [(8.0, 16 / 3), (0.1, 0.15), (1.2, 1.0), (1.0, 1.0)])
def test_a_decrease_below_rounding_takes_the_damping_back_towards_its_start(damping, expected):
    trial = tried(step=-1e-9, predicted=1e-9)
    assert trial.accepted
    assert trial.reduction_ratio == 1
    found = next_damping(levenberg_marquardt(1.0), jnp.float32(damping), trial)
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_rise_above_rounding_is_rejected_however_little_was_promised():
    trial = tried(step=1.0, predicted=1e-9)
    assert not trial.accepted
    assert next_damping(levenberg_marquardt(1.0), jnp.float32(2.0), trial) == 3.0
