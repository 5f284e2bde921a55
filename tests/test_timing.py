import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soaa_edu import timing

PARAMS = {"weight": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}
GRADIENTS = {"weight": jnp.full((2, 3), 0.5), "bias": jnp.array([1.0, -2.0, 3.0])}


def recording(seen, takes_loss=False):
    """Adam that notes, whenever Python runs it, whether all of it is traced, and its extras."""
    inner = optax.with_extra_args_support(optax.adam(0.1))

    def update(gradients, state, params=None, **extra):
        (traced,) = {
            isinstance(leaf, jax.core.Tracer)
            for leaf in jax.tree.leaves((gradients, state, params))
        }
        seen.append((traced, extra))
        return inner.update(gradients, state, params)

    kind = optax.GradientTransformationExtraArgs if takes_loss else optax.GradientTransformation
    return kind(inner.init, update)


@pytest.fixture
def waited_for(monkeypatch):
    """What each update gave, in turn."""
    found = []
    wait = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda tree: found.append(tree) or wait(tree))
    return found


def test_every_repeat_of_both_ways_is_a_time():
    timed = timing.both_ways(optax.sgd(0.1), PARAMS, GRADIENTS, repeats=3)
    for seconds in timed:
        assert seconds.shape == (3,)
        assert np.all(seconds > 0)


def test_both_ways_move_the_parameters_alike(waited_for):
    timing.both_ways(optax.adam(0.1), PARAMS, GRADIENTS, repeats=2)
    adam = optax.adam(0.1)
    updates, state = adam.update(GRADIENTS, adam.init(PARAMS), PARAMS)
    expected = optax.apply_updates(PARAMS, updates), state
    assert len(waited_for) == 2 * (2 + 1)
    for found in waited_for:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_one_way_runs_in_python_each_time_and_the_other_is_compiled_once():
    seen = []
    timing.both_ways(recording(seen), PARAMS, GRADIENTS, repeats=4)
    assert [traced for traced, _ in seen].count(True) == 1
    assert [traced for traced, _ in seen].count(False) == 4 + 1


@pytest.mark.parametrize("takes_loss", [False, True])
def test_a_transformation_is_given_a_loss_if_it_takes_one(takes_loss):
    seen = []
    timing.both_ways(recording(seen, takes_loss), PARAMS, GRADIENTS, repeats=1)
    assert all(extra == ({"value": 1} if takes_loss else {}) for _, extra in seen)


@pytest.mark.parametrize("repeats", [0, 2.5, True])
def test_repeats_are_a_whole_number(repeats):
    with pytest.raises(ValueError, match="repeats must be a whole number of one or more"):
        timing.both_ways(optax.sgd(0.1), PARAMS, GRADIENTS, repeats=repeats)
