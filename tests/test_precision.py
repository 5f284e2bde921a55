"""Products are as exact as their type: in what is traced, and in numbers, on any device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import operations

import soaa_edu
from soaa_edu import curvature, kronecker, linear_solvers, problems
from soaa_edu.optimizers.blocks import inverse_roots
from soaa_edu.precision import exact_products

EXACT = (jax.lax.Precision.HIGHEST,) * 2

WITH_OBJECTIVE = {
    "newton": lambda o: soaa_edu.newton(o, damping=0.1, curvature="gauss_newton"),
    "newton undamped": lambda o: soaa_edu.newton(o),
    "hessian_free": lambda o: soaa_edu.hessian_free(o, damping=soaa_edu.levenberg_marquardt(1.0)),
    "martens_hessian_free": lambda o: soaa_edu.martens_hessian_free(o),
    "trust_region": lambda o: soaa_edu.trust_region(o, radius=None, update="cat"),
    "trust_region steihaug": lambda o: soaa_edu.trust_region(o, subproblem="steihaug"),
    "kfac": lambda o: soaa_edu.kfac(o, learning_rate=0.1, damping=0.1),
    "ekfac": lambda o: soaa_edu.ekfac(
        o, learning_rate=0.1, damping=soaa_edu.levenberg_marquardt(1.0), fisher="exact"
    ),
    "hessian_free by layers": lambda o: soaa_edu.hessian_free(
        o, damping=1.0, curvature="gauss_newton", blocks="layers"
    ),
    "kfac in micro-batches": lambda o: soaa_edu.kfac(
        o, learning_rate=0.1, damping=soaa_edu.levenberg_marquardt(1.0), micro_batches=3
    ),
    "kfac exact": lambda o: soaa_edu.kfac(
        o, learning_rate=0.1, damping=soaa_edu.levenberg_marquardt(1.0), fisher="exact"
    ),
}
OF_GRADIENTS = {
    "adam_8bit": soaa_edu.adam_8bit(0.1),
    "galore": soaa_edu.galore(0.1, rank=2),
    "kl_shampoo": soaa_edu.kl_shampoo(0.1),
    "psgd": soaa_edu.psgd(0.1),
    "shampoo": soaa_edu.shampoo(0.1),
    "shampoo by eigenvalues": soaa_edu.shampoo(0.1, exponent=0.3),
    "soaa": soaa_edu.soaa(0.1, total_steps=9),
    "soap": soaa_edu.soap(0.1),
    "tadam": soaa_edu.tadam(0.1, total_steps=9),
}


def small_network(model=None):
    model = model or soaa_edu.models.mlp([24, 5, 4])
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    return objective, model.init(jax.random.key(0)), (jnp.ones((3, 24)), jnp.arange(3))


def inexact(function, *arguments):
    """The products that are not exact, and whether there are any products at all."""
    products = [
        equation
        for equation, _ in operations(function, *arguments)
        if equation.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    wrong = [p for p in products if p.params["precision"] not in (EXACT, EXACT[0])]
    return wrong, len(products) > 0


def test_every_method_is_among_those_checked_here():
    checked = {name.split()[0] for name in (*WITH_OBJECTIVE, *OF_GRADIENTS)}
    others = {"Optimizer", "first_order", "levenberg_marquardt", "with_dropout"}
    cores = {name for name in soaa_edu.optimizers.__all__ if name.startswith("scale_by_")}
    assert {name.removeprefix("scale_by_") for name in cores} == {
        name.split()[0] for name in OF_GRADIENTS
    }
    assert checked == set(soaa_edu.optimizers.__all__) - others - cores


@pytest.mark.parametrize("name", WITH_OBJECTIVE)
def test_all_products_of_a_step_are_exact(name):
    objective, params, batch = small_network()
    optimizer = WITH_OBJECTIVE[name](objective)
    state = jax.eval_shape(optimizer.init, params)
    assert inexact(optimizer.step, params, state, batch, jax.random.key(0)) == ([], True)


def test_all_convolutions_of_a_step_are_exact():
    objective, params, batch = small_network(
        soaa_edu.models.cnn(4, image_shape=(6, 4, 1), channels=(2, 2))
    )
    optimizer = WITH_OBJECTIVE["kfac"](objective)
    state = jax.eval_shape(optimizer.init, params)
    assert inexact(optimizer.step, params, state, batch, jax.random.key(0)) == ([], True)


@pytest.mark.parametrize("name", OF_GRADIENTS)
def test_all_products_of_an_update_are_exact(name):
    params = {"matrix": jnp.ones((6, 5)), "vector": jnp.ones(3)}
    transformation = OF_GRADIENTS[name]
    state = jax.eval_shape(transformation.init, params)
    wrong, some = inexact(transformation.update, params, state, params)
    assert not wrong
    assert some == (name not in ("adam_8bit", "soaa", "tadam"))


def test_a_compiled_update_stays_exact_under_vmap():
    params = jnp.ones((2, 6, 5))
    transformation = OF_GRADIENTS["shampoo"]
    state = jax.eval_shape(jax.vmap(transformation.init), params)
    assert inexact(jax.vmap(jax.jit(transformation.update)), params, state) == ([], True)


A, B = jnp.eye(5) + 0.1, jnp.arange(5.0)


def multiply(v):
    return A @ v


def of_network(function):
    """A function of the objective, its parameters, a batch, and a direction like the parameters."""
    objective, params, batch = small_network()
    return lambda v: function(objective, params, batch, v), params


def both_factors(objective, params, batch, v):
    signals = kronecker.run_forward(objective.model, params, batch[0])
    signals.pull(signals.outputs)
    return kronecker.factors(objective, signals, batch[1], fisher="exact")


PUBLIC = {
    "conjugate_gradient": (
        lambda b: linear_solvers.conjugate_gradient(multiply, b, max_iterations=60),
        B,
    ),
    "cg_path": (
        lambda b: linear_solvers.cg_path(
            multiply, b, max_iterations=9, x0=b, preconditioner=multiply
        ),
        B,
    ),
    "lanczos": (lambda b: linear_solvers.lanczos(multiply, b, 3), B),
    "spectral_quadrature": (
        lambda b: linear_solvers.spectral_quadrature(
            multiply, b, jax.random.key(0), iterations=3, samples=2
        ),
        B,
    ),
    "steihaug_cg": (lambda b: linear_solvers.steihaug_cg(multiply, b, 1.0, max_iterations=3), B),
    "lanczos_trust_region": (
        lambda b: linear_solvers.lanczos_trust_region(multiply, b, 1.0, iterations=3),
        B,
    ),
    "inverse_root": (lambda a: linear_solvers.inverse_root(a, 0.25, 0.1), A),
    "coupled_newton": (lambda a: linear_solvers.coupled_newton(a, 4, 0.1), A),
    "inverse_root_by_products": (lambda a: linear_solvers.inverse_root_by_products(a, 4, 0.1), A),
    "quadratic": (problems.quadratic(A, B), B),
    "hvp": of_network(lambda o, p, batch, v: curvature.hvp(lambda p: o(p, batch), p, v)),
    "hessian": of_network(
        lambda o, p, batch, v: curvature.hessian_matvec(lambda p: o(p, batch), p)(v)
    ),
    "gauss_newton": of_network(lambda o, p, b, v: curvature.gauss_newton_matvec(o, p, b)(v)),
    "fisher": of_network(lambda o, p, b, v: curvature.fisher_matvec(o, p, b)(v)),
    "empirical_fisher": of_network(
        lambda o, p, b, v: curvature.empirical_fisher_matvec(o, p, b)(v)
    ),
    "empirical_fisher_diagonal": of_network(
        lambda o, p, b, v: curvature.empirical_fisher_diagonal(o, v, b)
    ),
    "dense": (lambda v: curvature.dense(multiply, v), B),
    "factors": of_network(both_factors),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_library_multiplies_exactly_wherever_it_is_called_from(name):
    function, argument = PUBLIC[name]
    assert inexact(function, argument) == ([], True)


def test_outside_nothing_changes_and_a_precision_of_ones_own_holds():
    def multiplied(v):
        with exact_products():
            inner = jnp.matmul(A, v, precision="default")
        return inner + A @ v

    found = [e.params["precision"] for e, _ in operations(multiplied, B) if "dot" in str(e)]
    assert found == [(jax.lax.Precision.DEFAULT,) * 2, None]


def in_float64(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


def definite(condition, size=32, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    matrix = (q * np.geomspace(1 / condition, 1, size)) @ q.T
    return jnp.asarray((matrix + matrix.T) / 2, jnp.float32)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def a_product(rounded):
    a, b = normal(64, 64), normal(64, 64, seed=1)
    left, right = in_float64(a, b)
    return exact_products()(jnp.matmul)(rounded(a), rounded(b)), left @ right


def a_root(rounded):
    """As Shampoo takes it on this device."""
    matrix = definite(1e3)
    (found,) = jax.jit(lambda a: inverse_roots([a[None]], 0.25, 0.0))(rounded(matrix))
    values, vectors = np.linalg.eigh(*in_float64(matrix))
    return found[0], (vectors * values**-0.25) @ vectors.T


def a_root_by_products(rounded):
    matrix = definite(1e3)
    values, vectors = np.linalg.eigh(*in_float64(matrix))
    found = linear_solvers.coupled_newton(rounded(matrix), 4, 0.0)
    return found.root, (vectors * values**-0.25) @ vectors.T


def a_kfac_inverse(rounded):
    """Of the input factor of a softmax regression: (A + π√λ I)⁻¹."""
    x, labels, damping = normal(40, 20) @ definite(30, 20), np.arange(40) % 4, 1e-4
    model = soaa_edu.models.mlp([20, 4])
    objective = soaa_edu.Objective(model, soaa_edu.softmax_cross_entropy)
    params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0)))
    optimizer = soaa_edu.kfac(objective, learning_rate=0.1, damping=damping, fisher="empirical")
    batch = rounded(x), jnp.asarray(labels)
    step = jax.jit(optimizer.step)
    _, state, _ = step(params, optimizer.init(params), batch, jax.random.key(0))
    (found,) = (of_inputs for of_inputs, _ in state.inverses.values())
    rows = np.concatenate([*in_float64(x), np.ones((40, 1))], axis=1)
    residual = 0.25 - np.eye(4)[labels]
    a, g = rows.T @ rows / 40, residual.T @ residual / 40
    pi = np.sqrt(np.trace(a) / 21 / (np.trace(g) / 4))
    return found, np.linalg.inv(a + pi * np.sqrt(damping) * np.eye(21))


def a_solution_by_cg(rounded):
    matrix, b = definite(100.0), normal(32)

    @jax.jit
    def solve(a, b):
        return linear_solvers.conjugate_gradient(
            lambda v: a @ v, b, max_iterations=200, tolerance=1e-6
        ).solution

    return solve(rounded(matrix), b), np.linalg.solve(*in_float64(matrix, b))


def a_hessian_product(rounded):
    """Of a softmax regression: H v = Xᵀ (p ∘ (X v) - p (pᵀ X v)) / B."""
    x, w, v = normal(50, 20), normal(20, 4, seed=1), normal(20, 4, seed=2)
    labels = jnp.arange(50) % 4

    @jax.jit
    def product(x, w, v):
        return curvature.hvp(lambda w: soaa_edu.softmax_cross_entropy(x @ w, labels), w, v)

    rows, weight, direction = in_float64(x, w, v)
    p = np.exp(rows @ weight)
    p /= p.sum(axis=1, keepdims=True)
    change = rows @ direction
    expected = rows.T @ (p * (change - (p * change).sum(axis=1, keepdims=True))) / 50
    return product(*map(rounded, (x, w, v))), expected


BOUNDS = {
    a_product: 1e-5,
    a_root: 1e-4,
    a_root_by_products: 1e-4,
    a_kfac_inverse: 5e-5,
    a_solution_by_cg: 1e-4,
    a_hessian_product: 3e-5,
}


def to_ten_bits(array):
    """What TF32 makes of a factor of a product."""
    return jax.lax.reduce_precision(array, exponent_bits=8, mantissa_bits=10)


@pytest.mark.parametrize("compute", BOUNDS, ids=lambda compute: compute.__name__)
def test_numbers_are_as_exact_as_float32_and_ten_bits_would_not_do(compute):
    def error(rounded):
        found, expected = compute(rounded)
        assert found.dtype == np.float32
        return np.linalg.norm(found - expected) / np.linalg.norm(expected)

    assert error(lambda array: array) < BOUNDS[compute]
    assert error(to_ten_bits) > 3 * BOUNDS[compute]
