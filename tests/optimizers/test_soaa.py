import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import soaa_edu
from soaa_edu.optimizers import soaa, tadam

SHAPES = {"weight": (5, 3), "bias": (3,), "scale": ()}
TOTAL = 150


def soaa_from_the_paper(
    gradients, losses, theta, *, rate, b1, b2, gamma, eps, decay, variance, fisher
):
    """Algorithm 1 on one long vector, with the reading of v that the docstring gives."""
    m = s = v = np.zeros_like(theta)
    dt, l_avg, pr = 1.0, 0.0, 0.0
    thetas, scales, shares = [], [], []
    m_hat = np.zeros_like(theta)
    for t, g in enumerate(gradients, start=1):
        m_hat_before = m_hat
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * g**2
        m_hat, s_hat = m / (1 - b1**t), s / (1 - b2**t)
        v = b2 * v + (1 - b2) * (g - m_hat_before) * (g - m_hat) if variance == "centred" else s
        v_hat = v / (1 - b2**t)
        if fisher == "printed":
            f = (1 + np.sum(m_hat**2) / np.sum(v_hat + eps)) * v_hat
        else:
            f = (1 + np.sum(m_hat**2 / (v_hat + eps))) * v_hat
        d = m_hat * dt / (np.maximum(dt * f, np.sqrt(s_hat)) + eps)
        shares.append(np.mean(dt * f > np.sqrt(s_hat)))
        alpha = rate(t - 1) if callable(rate) else rate
        theta = theta - alpha * decay * theta - alpha * d
        if losses is not None:
            loss = losses[t - 1]
            l_avg = b1 * l_avg + (1 - b1) * loss
            l_hat = l_avg / (1 - b1**t)
            if t > 1:
                low, high = (1 - gamma) ** ((t - 1) / TOTAL), 1 + gamma ** ((t - 1) / TOTAL)
                dt = min(max((l_hat - loss) / max(pr, eps) * dt, low), high)
            pr = alpha * np.sum(m_hat * d - 0.5 * v_hat * d**2)
        thetas.append(theta)
        scales.append(dt)
    return np.array(thetas), np.array(scales), np.array(shares)


def tadam_from_its_code(gradients, losses, theta, *, rate, b1, b2, gamma, eps, decay):
    m = s = v = np.zeros_like(theta)
    dt, l_avg, l_hat, pr = 1.0, 0.0, 0.0, 0.0
    m_hat = np.zeros_like(theta)
    thetas, scales = [], []
    for t, g in enumerate(gradients, start=1):
        m_hat_before = m_hat
        m = b1 * m + (1 - b1) * g
        m_hat = m / (1 - b1**t)
        s = b2 * s + (1 - b2) * g**2
        v = b2 * v + (1 - b2) * (g - m_hat_before) * (g - m_hat)
        s_hat, v_hat = s / (1 - b2**t), v / (1 - b2**t)
        f = (1 + np.sum(m_hat**2 / (v_hat + eps))) * v_hat
        d = m_hat * dt / (np.maximum(dt * f, np.sqrt(s_hat)) + eps)
        theta = theta - rate * decay * theta - rate * d
        if losses is not None:
            rho = (l_hat - losses[t - 1]) / max(pr, eps)
            low, high = (1 - gamma) ** (t / TOTAL), 1 + gamma ** (t / TOTAL)
            r = low if rho < gamma else high if rho > 1 - gamma else 1
            dt = min(max(r * dt, low), high)
            l_avg = b1 * l_avg + (1 - b1) * losses[t - 1]
            l_hat = l_avg / (1 - b1**t)
            pr = rate * np.sum(m_hat * d - 0.5 * v_hat * d**2)
        thetas.append(theta)
        scales.append(dt)
    return np.array(thetas), np.array(scales)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def to_tree(vectors, dtype):
    """Vectors (..., 19) as the arrays of ``SHAPES``, in the order in which JAX lists them."""
    tree, start = {}, 0
    for name in sorted(SHAPES):
        size = int(np.prod(SHAPES[name]))
        part = vectors[..., start : start + size]
        tree[name] = jnp.asarray(part.reshape((*vectors.shape[:-1], *SHAPES[name])), dtype)
        start += size
    return tree


def run(transformation, gradients, losses, theta, dtype="float64"):
    """Parameters, dt and share along the steps, the whole run compiled."""
    params = to_tree(theta, dtype)

    def step(carry, given):
        params, state = carry
        gradient, loss = given
        extra = {} if losses is None else {"value": loss}
        updates, state = transformation.update(gradient, state, params, **extra)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state.trust_scale, state.info["curvature_share"])

    given = (
        to_tree(gradients, dtype),
        jnp.zeros(len(gradients)) if losses is None else jnp.asarray(losses, dtype),
    )

    @jax.jit
    def everything(params):
        return jax.lax.scan(step, (params, transformation.init(params)), given)[1]

    params, scales, shares = everything(params)
    along = np.concatenate(
        [np.reshape(params[name], (len(gradients), -1)) for name in sorted(SHAPES)], axis=1
    )
    return along, np.asarray(scales), np.asarray(shares)


@pytest.fixture
def noisy(rng):
    """200 gradients around a drifting mean, losses that fall and rise, and where to start.

    The gradients are large enough that the Fisher decides in some coordinates and not in others.
    """
    sizes = np.exp(rng.uniform(-6, 2, size=19))
    gradients = sizes * (rng.normal(size=(200, 19)) + np.sin(np.arange(200) / 15)[:, None])
    losses = 3 * np.exp(-np.arange(200) / 80) + 0.1 * rng.normal(size=200)
    return gradients, losses, rng.normal(size=19)


@pytest.mark.parametrize(
    ("variance", "fisher"),
    list(itertools.product(["centred", "second_moment"], ["printed", "sherman_morrison"])),
)
@pytest.mark.parametrize("with_loss", [True, False])
def test_soaa_agrees_with_the_paper_over_200_steps(float64, noisy, variance, fisher, with_loss):
    gradients, losses, theta = noisy
    losses = losses if with_loss else None
    chosen = {"b1": 0.8, "b2": 0.99, "gamma": 0.3, "eps": 1e-8}
    rule = soaa(
        0.01, total_steps=TOTAL, weight_decay=0.1, variance=variance, fisher=fisher, **chosen
    )
    found, scales, shares = run(rule, gradients, losses, theta)
    expected, expected_scales, expected_shares = soaa_from_the_paper(
        gradients, losses, theta, rate=0.01, decay=0.1, variance=variance, fisher=fisher, **chosen
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(scales, expected_scales, rtol=1e-9)
    np.testing.assert_allclose(shares, expected_shares, atol=1e-12)
    assert 0 < np.mean(expected_shares) < 1
    assert with_loss == (np.ptp(scales) > 0)


@pytest.mark.parametrize("with_loss", [True, False])
def test_tadam_agrees_with_its_code_over_200_steps(float64, noisy, with_loss):
    gradients, losses, theta = noisy
    losses = losses if with_loss else None
    chosen = {"b1": 0.8, "b2": 0.99, "gamma": 0.3, "eps": 1e-8}
    rule = tadam(0.01, total_steps=TOTAL, weight_decay=0.1, **chosen)
    found, scales, _ = run(rule, gradients, losses, theta)
    expected, expected_scales = tadam_from_its_code(
        gradients, losses, theta, rate=0.01, decay=0.1, **chosen
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(scales, expected_scales, rtol=1e-9)


def test_a_schedule_is_the_learning_rate_of_every_line(float64, noisy):
    gradients, losses, theta = noisy

    def schedule(count):
        return 0.02 * (1 - count / 200.0)

    found, scales, _ = run(soaa(schedule, total_steps=TOTAL), gradients, losses, theta)
    expected, expected_scales, _ = soaa_from_the_paper(
        gradients,
        losses,
        theta,
        rate=schedule,
        b1=0.9,
        b2=0.999,
        gamma=0.25,
        eps=1e-8,
        decay=0.0,
        variance="centred",
        fisher="printed",
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(scales, expected_scales, rtol=1e-9)


@pytest.mark.parametrize("rule", [soaa, tadam])
def test_float32_is_the_same_compiled_and_not(noisy, rule):
    gradients, losses, theta = (np.asarray(array, np.float32) for array in noisy)
    transformation = rule(0.01, total_steps=TOTAL)
    compiled, scales, _ = run(transformation, gradients[:8], losses[:8], theta, "float32")
    params = to_tree(theta, "float32")
    state = transformation.init(params)
    for t in range(8):
        gradient = to_tree(gradients[t], "float32")
        updates, state = transformation.update(gradient, state, params, value=losses[t])
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(flat(params), compiled[t], rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(state.trust_scale, scales[t], rtol=1e-3)


def test_float32_stays_close_to_float64(float64, noisy):
    gradients, losses, theta = noisy
    rule = soaa(0.01, total_steps=TOTAL)
    wide, *_ = run(rule, gradients[:60], losses[:60], theta)
    narrow, *_ = run(rule, gradients[:60], losses[:60], theta, "float32")
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, wide, atol=1e-4)


def test_a_constant_gradient_has_no_variance(float64, rng):
    gradient = rng.normal(size=19)
    rule = soaa(0.1, total_steps=10)
    params = to_tree(np.zeros(19), "float64")
    state = rule.init(params)
    update = jax.jit(rule.update)
    for _ in range(5):
        _, state = update(to_tree(gradient, "float64"), state, params)
    variance = flat(state.moments.variance)
    assert np.all(variance >= 0)
    np.testing.assert_allclose(variance, 0, atol=1e-30)


def test_with_gamma_zero_and_small_gradients_it_is_adam(float64, noisy):
    gradients, losses, theta = noisy
    gradients = 1e-3 * gradients
    found, scales, shares = run(soaa(0.01, total_steps=TOTAL, gamma=0.0), gradients, losses, theta)
    expected, *_ = run_adam(gradients, theta)
    assert np.all(scales == 1) and np.all(shares == 0)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-13)


def run_adam(gradients, theta):
    adam = optax.adam(0.01)

    @jax.jit
    def everything(theta):
        def step(carry, gradient):
            theta, state = carry
            updates, state = adam.update(gradient, state, theta)
            theta = optax.apply_updates(theta, updates)
            return (theta, state), theta

        return jax.lax.scan(step, (theta, adam.init(theta)), jnp.asarray(gradients))[1]

    return (np.asarray(everything(jnp.asarray(theta))),)


def test_where_the_fisher_decides_the_step_solves_with_diagonal_plus_outer_product(float64, rng):
    """Sherman and Morrison: m̂ / F = (diag(v̂) + m̂ m̂ᵀ)⁻¹ m̂ as eps → 0."""
    gradients = 1e4 * rng.normal(size=(3, 19))
    rule = soaa(1.0, total_steps=10, eps=1e-14, gamma=0.0, fisher="sherman_morrison")
    params = to_tree(np.zeros(19), "float64")
    state = rule.init(params)
    update = jax.jit(rule.update)
    for gradient in gradients:
        updates, state = update(to_tree(gradient, "float64"), state, params)
    assert state.info["curvature_share"] == 1
    m_hat = flat(state.moments.mean) / (1 - 0.9**3)
    v_hat = flat(state.moments.variance) / (1 - 0.999**3)
    fisher = np.diag(v_hat) + np.outer(m_hat, m_hat)
    np.testing.assert_allclose(-flat(updates), np.linalg.solve(fisher, m_hat), rtol=1e-8)


@pytest.mark.parametrize("rule", [soaa, tadam])
def test_the_trust_scale_stays_between_its_bounds_and_all_is_told(classifier, rng, rule):
    objective, params = classifier()
    batch = (rng.normal(size=(32, 12)), rng.integers(4, size=32))
    optimizer = soaa_edu.first_order(objective, rule(0.05, total_steps=30))
    data = soaa_edu.data.Dataset(train=batch)
    history = soaa_edu.train(
        optimizer,
        params,
        data,
        epochs=10,
        batch_size=8,
        key=jax.random.key(0),
        progress=False,
    )
    info = history.info
    assert set(info) == {
        "trust_scale",
        "trust_scale_low",
        "trust_scale_high",
        "reduction_ratio",
        "curvature_share",
    }
    slack = 1e-12
    assert np.all(info["trust_scale"] >= info["trust_scale_low"] - slack)
    assert np.all(info["trust_scale"] <= info["trust_scale_high"] + slack)
    assert np.ptp(info["trust_scale"]) > 0.1
    assert history.loss[-4:].mean() < 0.8 * history.loss[:4].mean()


@pytest.mark.parametrize("rule", [soaa, tadam])
def test_state_is_three_copies_and_a_few_scalars(rule):
    params = {"a": jnp.zeros((30, 40)), "b": jnp.zeros(7, jnp.bfloat16)}
    state = rule(0.1, total_steps=5).init(params)
    large = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sum(leaf.size for leaf in large) == 3 * (1200 + 7)
    assert {leaf.dtype.name for leaf in large} == {"float32"}
    assert len(jax.tree.leaves(state)) - len(large) <= 10


def test_the_second_moment_variant_keeps_two_copies():
    state = soaa(0.1, total_steps=5, variance="second_moment").init(jnp.zeros(50))
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 100


@pytest.mark.parametrize("rule", [soaa, tadam])
def test_low_precision_weights_keep_their_type(rule, rng):
    params = jnp.asarray(rng.normal(size=(8, 4)), jnp.bfloat16)
    transformation = rule(0.1, total_steps=5, weight_decay=0.01)
    updates, state = jax.jit(transformation.update)(
        params, transformation.init(params), params, value=jnp.bfloat16(1.5)
    )
    assert updates.dtype == jnp.bfloat16
    assert np.all(np.isfinite(updates.astype("float32")))
    assert state.trust_scale.dtype == np.float32


def test_one_long_vector_and_its_pieces_take_the_same_steps(float64, noisy):
    """The sums run over all arrays."""
    gradients, losses, theta = noisy
    gradients, losses = gradients[:40], losses[:40]
    rule = soaa(0.01, total_steps=TOTAL)
    pieces, *_ = run(rule, gradients, losses, theta)

    def step(carry, given):
        params, state = carry
        updates, state = rule.update(given[0], state, params, value=given[1])
        params = optax.apply_updates(params, updates)
        return (params, state), params

    whole = jax.jit(
        lambda p: jax.lax.scan(
            step, (p, rule.init(p)), (jnp.asarray(gradients), jnp.asarray(losses))
        )
    )(jnp.asarray(theta))[1]
    np.testing.assert_allclose(pieces, whole, rtol=1e-11)


@pytest.mark.parametrize("rule", [soaa, tadam])
@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"learning_rate": -0.1}, "learning_rate must be a finite number above zero"),
        ({"total_steps": 0}, "total_steps must be a whole number"),
        ({"total_steps": 10.5}, "total_steps must be a whole number"),
        ({"b1": 1.0}, "b1 must be"),
        ({"b2": -0.1}, "b2 must be"),
        ({"gamma": 1.0}, "gamma must be"),
        ({"eps": 0.0}, "eps must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
    ],
)
def test_bad_numbers_are_named(rule, wrong, named):
    arguments = {"learning_rate": 0.1, "total_steps": 10} | wrong
    with pytest.raises(ValueError, match=named):
        rule(**arguments)


@pytest.mark.parametrize("wrong", [{"variance": "raw"}, {"fisher": "full"}])
def test_unknown_variants_are_named(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} must be one of"):
        soaa(0.1, total_steps=10, **wrong)


def test_weight_decay_needs_the_parameters():
    rule = soaa(0.1, total_steps=10, weight_decay=0.1)
    params = jnp.ones(3)
    with pytest.raises(ValueError, match="weight decay needs the parameters"):
        rule.update(params, rule.init(params))


def test_a_traced_learning_rate_will_do(float64, noisy):
    gradients, losses, theta = noisy

    @jax.jit
    def final(rate):
        rule = soaa(rate, total_steps=TOTAL, weight_decay=rate)
        params = jnp.asarray(theta)
        state = rule.init(params)
        for gradient, loss in zip(gradients[:5], losses[:5], strict=True):
            updates, state = rule.update(gradient, state, params, value=loss)
            params = optax.apply_updates(params, updates)
        return params

    still, moved = final(0.0), final(0.1)
    np.testing.assert_allclose(still, theta, atol=1e-15)
    assert np.abs(moved - theta).min() > 1e-3
