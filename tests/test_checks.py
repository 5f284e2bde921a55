import jax
import jax.numpy as jnp
import numpy as np
import pytest

from soaa_edu import checks

NUMBERS = [1, 0.5, np.float32(2), jnp.float32(3), 10**6]


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("check", [checks.positive, checks.not_negative])
def test_positive_numbers_of_every_type_pass(check, value):
    check("rate", value)


def test_zero_is_not_negative_and_not_positive():
    checks.not_negative("damping", 0.0)
    with pytest.raises(ValueError, match="rate must be a finite number above zero, got 0"):
        checks.positive("rate", 0.0)


@pytest.mark.parametrize("value", [-1, -1e-300, np.nan, np.inf, jnp.float32(-2), True, np.True_])
@pytest.mark.parametrize("check", [checks.positive, checks.not_negative])
def test_other_values_are_refused_by_name(check, value):
    with pytest.raises(ValueError, match="rate must be a finite number"):
        check("rate", value)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad])
@pytest.mark.parametrize("check", [checks.positive, checks.not_negative])
def test_traced_values_pass_whatever_they_are(transform, check):
    def checked(value):
        check("rate", value)
        return 2 * value

    argument = -jnp.ones(3) if transform is jax.vmap else -1.0
    assert jnp.all(jnp.abs(transform(checked)(argument)) == 2)


def test_a_concrete_value_becomes_a_float_and_a_traced_one_none():
    seen = []
    jax.jit(lambda value: seen.append(checks.concrete(value)))(1.5)
    assert [*seen, checks.concrete(jnp.float32(1.5))] == [None, 1.5]


@pytest.mark.parametrize("value", [1, 7, np.int64(3)])
def test_whole_numbers_pass(value):
    checks.whole("epochs", value)


@pytest.mark.parametrize("value", [0, -3, 2.5, 3.0, True, np.True_, np.nan, "3", jnp.float32(2)])
def test_values_that_are_not_whole_or_below_one_are_refused_by_name(value):
    with pytest.raises(ValueError, match="epochs must be a whole number of one or more"):
        checks.whole("epochs", value)


def test_only_the_allowed_words_pass():
    checks.one_of("mode", "fast", ("slow", "fast"))
    with pytest.raises(ValueError, match="mode must be one of 'slow', 'fast', got 'Fast'"):
        checks.one_of("mode", "Fast", ("slow", "fast"))
