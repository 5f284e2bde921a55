from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from soaa_edu import (
    Objective,
    Optimizer,
    first_order,
    kfac,
    psgd,
    soaa,
    softmax_cross_entropy,
    train,
)
from soaa_edu.data import Dataset
from soaa_edu.models import mlp
from soaa_edu.problems import random_quadratic, rosenbrock, saddle
from soaa_edu.training import epoch

MODEL = mlp([3, 4])
OBJECTIVE = Objective(MODEL, softmax_cross_entropy)
KEY = jax.random.key(0)
quiet = partial(train, key=KEY, progress=False)


def draw(rng, examples, test_examples=0):
    """Random inputs of width 3 with labels from 0 to 3."""
    halves = [(rng.normal(size=(n, 3)), rng.integers(4, size=n)) for n in (examples, test_examples)]
    return Dataset(train=halves[0], test=halves[1] if test_examples else None)


def zeros():
    return {"dense_0": {"weight": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}}


def gradient_descent(objective=OBJECTIVE, rate=0.1):
    return first_order(objective, optax.sgd(rate))


DESCENT = gradient_descent()


def witness_step(params, state, batch, key):
    """Changes nothing and tells what it was given, four examples at a time."""
    inputs, targets = batch
    told = {f"input_{i}": inputs[i] for i in range(4)}
    told |= {f"target_{i}": targets[i] for i in range(4)}
    return params, state, {"loss": 0.0, "draw": jax.random.uniform(key), **told}


def telling_step(params, state, batch, key):
    """Gradient descent that tells half its loss."""
    params, state, info = DESCENT.step(params, state, batch, key)
    return params, state, {**info, "half": info["loss"] / 2}


TELLING = Optimizer(DESCENT.init, telling_step, OBJECTIVE)
WITNESS = Optimizer(lambda params: (), witness_step)


def watch(examples, epochs, key=KEY):
    """What the witness was given: inputs and targets (epochs, used examples), and draws."""
    numbers = np.arange(examples)
    data = Dataset(train=(numbers, 10 * numbers))
    told = quiet(WITNESS, jnp.zeros(1), data, epochs=epochs, batch_size=4, key=key).info
    inputs, targets = (
        np.stack([told[f"{name}_{i}"] for i in range(4)], axis=-1).reshape(epochs, -1)
        for name in ("input", "target")
    )
    return inputs, targets, told["draw"]


def test_training_is_a_loop_of_steps(float64, rng):
    data = draw(rng, 8)
    history = quiet(DESCENT, zeros(), data, epochs=5, batch_size=8)
    params, losses, derive = zeros(), [], jax.jit(jax.value_and_grad(OBJECTIVE))
    for _ in range(5):
        loss, gradient = derive(params, data.train)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
        losses.append(loss)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), history.params, params)


def test_every_epoch_sees_every_example_once_with_its_own_target():
    inputs, targets, _ = watch(12, 3)
    np.testing.assert_array_equal(np.sort(inputs, axis=1), [np.arange(12)] * 3)
    np.testing.assert_array_equal(targets, 10 * inputs)


def test_the_last_partial_batch_is_dropped_and_other_examples_each_time():
    inputs, _, _ = watch(11, 6)
    assert inputs.shape == (6, 8)
    assert all(len(set(epoch)) == 8 for epoch in inputs)
    assert set(inputs.ravel()) == set(range(11))


def test_every_epoch_has_its_own_order_and_every_step_its_own_key():
    inputs, _, draws = watch(12, 3)
    assert len({tuple(epoch) for epoch in inputs}) == 3
    assert len(set(draws)) == 9


def test_the_key_decides_the_order_and_the_draws():
    first, again, other = (watch(12, 2, jax.random.key(seed)) for seed in (0, 0, 1))
    for seen, once_more, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(seen, once_more)
        assert not np.array_equal(seen, different)


def test_a_history_has_steps_and_epochs_in_numpy(rng):
    history = quiet(TELLING, zeros(), draw(rng, 9, 4), epochs=2, batch_size=4)
    assert history.loss.shape == (4,)
    np.testing.assert_array_equal(history.info["half"], history.loss / 2)
    assert list(history.info) == ["half"]
    per_epoch = history.test_loss, history.test_accuracy, history.seconds
    assert [values.shape for values in per_epoch] == [(2,)] * 3
    assert np.all(np.isfinite(per_epoch))
    assert np.all(history.seconds > 0)
    assert {type(values) for values in (history.loss, *per_epoch)} == {np.ndarray}


def test_progress_is_shown_unless_it_is_not_wanted(rng, capfd):
    data = draw(rng, 8)
    quiet(DESCENT, zeros(), data, epochs=2, batch_size=4)
    assert capfd.readouterr() == ("", "")
    quiet(DESCENT, zeros(), data, epochs=2, batch_size=4, progress=True)
    out, err = capfd.readouterr()
    assert "2/2" in err
    assert not out


def test_test_loss_and_accuracy_are_numpys_after_each_epoch(rng):
    data = draw(rng, 8, 50)
    inputs, labels = data.test
    labels[:10] = -1
    short, long = (quiet(DESCENT, zeros(), data, epochs=n, batch_size=4) for n in (1, 3))
    for history in (short, long):
        layer = history.params["dense_0"]
        logits = inputs @ layer["weight"] + layer["bias"]
        surprise = -scipy.special.log_softmax(logits[10:], axis=-1)[np.arange(40), labels[10:]]
        right = np.argmax(logits[10:], axis=-1) == labels[10:]
        np.testing.assert_allclose(history.test_loss[-1], surprise.mean(), rtol=1e-5)
        np.testing.assert_allclose(history.test_accuracy[-1], right.mean(), rtol=1e-6)
    np.testing.assert_allclose(long.test_loss[0], short.test_loss[0], rtol=1e-5)


@pytest.mark.parametrize("without", ["test set", "evaluate", "objective"])
def test_where_nothing_is_measured_the_test_results_are_nan(rng, without):
    data, optimizer = draw(rng, 8, 4), DESCENT
    if without == "test set":
        data = Dataset(train=data.train)
    if without == "objective":
        optimizer = Optimizer(optimizer.init, optimizer.step)
    evaluate = without != "evaluate"
    history = quiet(optimizer, zeros(), data, epochs=2, batch_size=4, evaluate=evaluate)
    np.testing.assert_array_equal(history.test_loss, [np.nan] * 2)
    np.testing.assert_array_equal(history.test_accuracy, [np.nan] * 2)


def test_targets_that_are_no_labels_have_a_loss_but_no_accuracy(rng):
    def objective(weight, batch):
        inputs, targets = batch
        return jnp.mean((inputs @ weight - targets) ** 2)

    (inputs, _), (test_inputs, _) = draw(rng, 8, 4)
    data = Dataset(train=(inputs, inputs[:, 0]), test=(test_inputs, test_inputs[:, 0]))
    history = quiet(gradient_descent(objective), jnp.zeros(3), data, epochs=1, batch_size=8)
    expected = np.mean((test_inputs @ history.params - test_inputs[:, 0]) ** 2)
    np.testing.assert_allclose(history.test_loss, [expected], rtol=1e-5)
    assert np.isnan(history.test_accuracy).all()


@pytest.fixture
def counted():
    """An objective that counts how often it is traced."""

    def objective(params, batch):
        objective.traces += 1
        return OBJECTIVE(params, batch)

    objective.traces = 0
    return objective


def test_the_same_optimizer_and_shapes_are_compiled_once(rng, counted):
    optimizer = gradient_descent(counted)
    quiet(optimizer, zeros(), draw(rng, 8, 4), epochs=3, batch_size=4)
    traces = counted.traces
    start = jax.tree.map(np.asarray, MODEL.init(KEY))
    quiet(optimizer, start, draw(rng, 8, 4), epochs=1, batch_size=4, key=jax.random.key(1))
    assert counted.traces == traces
    quiet(optimizer, start, draw(rng, 8, 4), epochs=1, batch_size=2)
    assert counted.traces > traces


@pytest.mark.parametrize("make, dtype", [(np.asarray, "float64"), (jnp.asarray, "float32")])
def test_an_optimizer_trains_under_float64_after_float32(rng, make, dtype):
    data, start = jax.tree.map(make, (draw(rng, 8, 4), jax.tree.map(np.float64, zeros())))
    single = quiet(DESCENT, start, data, epochs=3, batch_size=4)
    with jax.enable_x64(True):
        double = quiet(DESCENT, start, data, epochs=3, batch_size=4)
    assert (single.loss.dtype, double.loss.dtype) == ("float32", dtype)
    np.testing.assert_allclose(single.loss, double.loss, rtol=1e-6)


def explode(params, batch):
    """Gradient descent at rate 1 multiplies the parameter by -1e5 at every step."""
    return 0.5 * (1e5 + 1) * jnp.sum(params**2)


def test_a_run_that_diverges_is_recorded_at_its_step(rng):
    data, optimizer = draw(rng, 9, 3), gradient_descent(explode, 1.0)
    history = quiet(optimizer, jnp.ones(()), data, epochs=4, batch_size=3)
    assert history.diverged_at == 4
    np.testing.assert_array_equal(np.isfinite(history.loss), np.arange(12) < 4)
    np.testing.assert_array_equal(np.isfinite(history.test_loss), [True, False, False, False])
    np.testing.assert_array_equal(np.isfinite(history.seconds), [True, True, False, False])


def test_divergence_in_the_last_step_shows_in_the_test_loss(rng):
    history = quiet(
        gradient_descent(explode, 1e30), jnp.ones(()), draw(rng, 3, 3), epochs=1, batch_size=3
    )
    assert np.isfinite(history.loss).all()
    assert not np.isfinite(history.test_loss[0])


def test_a_last_step_to_infinity_counts_as_divergence_after_it(rng):
    history = quiet(
        gradient_descent(explode, 1e37), jnp.ones(()), draw(rng, 6), epochs=1, batch_size=6
    )
    assert np.isfinite(history.loss).all()
    assert history.diverged_at == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epochs": 0}, "epochs must be a whole number of one or more, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of one or more, got 0"),
        ({"batch_size": 9}, "a batch of 9 is larger than the 8 training examples"),
    ],
)
def test_epochs_and_batches_that_make_no_sense_are_refused(rng, options, message):
    with pytest.raises(ValueError, match=message):
        quiet(
            gradient_descent(), zeros(), draw(rng, 8), **({"epochs": 1, "batch_size": 4} | options)
        )


@pytest.mark.parametrize("half", ["train", "test"])
def test_inputs_and_targets_of_different_lengths_are_refused(rng, half):
    data = draw(rng, 8, 8)
    inputs, labels = getattr(data, half)
    data = data._replace(**{half: (inputs, labels[:5])})
    with pytest.raises(ValueError, match="8 inputs need as many targets, got 5"):
        quiet(DESCENT, zeros(), data, epochs=1, batch_size=4)


@pytest.mark.parametrize(
    "problem", [rosenbrock, saddle, random_quadratic(jax.random.key(0), [1.0, 2.0])]
)
def test_problems_train_on_dummy_data(problem):
    data = Dataset(train=(np.zeros(4), np.zeros(4)))
    history = quiet(gradient_descent(problem, 1e-3), jnp.ones(2) / 2, data, epochs=2, batch_size=1)
    assert np.all(np.diff(history.loss) < 0)
    np.testing.assert_allclose(history.loss[0], problem(jnp.ones(2) / 2), rtol=1e-6)


def test_the_parameters_given_are_left_alone(rng):
    start = zeros()
    quiet(DESCENT, start, draw(rng, 8), epochs=2, batch_size=4)
    assert not np.any(start["dense_0"]["weight"])


def test_a_random_key_may_live_in_an_optimizers_state(rng):
    noisy = first_order(OBJECTIVE, optax.noisy_sgd(0.1, key=jax.random.key(3)))
    history = quiet(noisy, zeros(), draw(rng, 8), epochs=2, batch_size=4)
    assert history.diverged_at is None


@pytest.mark.parametrize("name", ["kfac", "psgd", "soaa"])
def test_a_run_that_is_stopped_and_resumed_is_one_that_was_not(rng, name):
    optimizer = {
        "kfac": lambda: kfac(OBJECTIVE, learning_rate=0.1, damping=0.1),
        "psgd": lambda: first_order(OBJECTIVE, psgd(0.01)),
        "soaa": lambda: first_order(OBJECTIVE, soaa(0.01, total_steps=16)),
    }[name]()
    data = draw(rng, 24, 8)
    train_it = partial(quiet, optimizer, MODEL.init(KEY), data, batch_size=6)
    whole, first = train_it(epochs=4), train_it(epochs=2)
    resumed = train_it(epochs=4, resume=first)
    for field in ("loss", "test_loss", "test_accuracy"):
        np.testing.assert_array_equal(getattr(resumed, field), getattr(whole, field))
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, resumed.info, whole.info)


def test_what_cannot_be_resumed_is_refused(rng):
    optimizer, data = first_order(OBJECTIVE, optax.sgd(0.1)), draw(rng, 12)
    train_it = partial(quiet, optimizer, zeros(), data, batch_size=6)
    history = train_it(epochs=2)
    with pytest.raises(ValueError, match="has 2 epochs already"):
        train_it(epochs=2, resume=history)
    with pytest.raises(ValueError, match="no optimizer state to resume from"):
        train_it(epochs=3, resume=history._replace(state=None))
    with pytest.raises(ValueError, match="diverged at step 1: start anew"):
        broken = history._replace(loss=np.array([1, np.nan, 1, 1]))
        train_it(epochs=3, resume=broken)


def test_a_large_test_set_is_measured_in_parts(rng, monkeypatch):
    inputs, labels = rng.normal(size=(37, 3)), rng.integers(-1, 4, size=37)
    params = MODEL.init(KEY)
    whole = epoch.measure(OBJECTIVE, params, (jnp.asarray(inputs), jnp.asarray(labels)))
    monkeypatch.setattr(epoch, "MEASURED_AT_ONCE", 10)
    parts = epoch.measure(OBJECTIVE, params, (jnp.asarray(inputs), jnp.asarray(labels)))
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_dicts_of_arrays_are_cut_into_batches(rng):
    def loss(params, batch):
        inputs, targets = batch
        return jnp.mean((inputs["x"] @ params + inputs["y"] - targets) ** 2)

    x, y = rng.normal(size=(8, 3)), rng.normal(size=8)
    optimizer = first_order(loss, optax.sgd(0.1))
    data = Dataset(({"x": x, "y": y}, y), ({"x": x, "y": y}, y))
    history = quiet(optimizer, jnp.ones(3), data, epochs=2, batch_size=4)
    assert history.test_loss[1] < history.test_loss[0]
    uneven = Dataset(({"x": x, "y": y[:5]}, y))
    with pytest.raises(ValueError, match=r"one length along their first axis, got \[5, 8\]"):
        quiet(optimizer, jnp.ones(3), uneven, epochs=1, batch_size=4)


def test_an_objective_that_has_no_hash_is_measured_too(rng):
    class Ridge:
        __hash__ = None

        def __call__(self, params, batch):
            return jnp.mean((batch[0] @ params - batch[1]) ** 2) + 0.1 * jnp.sum(params**2)

    pair = rng.normal(size=(8, 3)), rng.normal(size=8)
    optimizer = first_order(Ridge(), optax.sgd(0.1))
    history = quiet(optimizer, jnp.ones(3), Dataset(pair, pair), epochs=2, batch_size=4)
    assert np.all(np.isfinite(history.test_loss))
