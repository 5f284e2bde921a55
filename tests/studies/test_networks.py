import jax
import numpy as np
import optax
import pytest

from soaa_edu import first_order, train
from soaa_edu.data import text
from soaa_edu.studies import networks

TINY = networks.Size(
    images=40,
    image_epochs=2,
    image_batch=16,
    hidden=(5, 3),
    characters=1000,
    length=16,
    text_batch=8,
    width=8,
    depth=1,
)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_a_task_has_data_that_its_network_takes(name):
    given = networks.task(name, TINY)
    params = jax.eval_shape(given.init)
    for inputs, targets in given.load():
        outputs = jax.eval_shape(given.objective.model, params, inputs[:3])
        classes = 10 if name == "mlp" else text.VOCABULARY
        assert outputs.shape == (*targets[:3].shape, classes)
        assert targets.max() < classes


@pytest.mark.parametrize(
    "name, rows, steps", [("mlp", 40, 4), ("encoder", 63, 7), ("decoder", 63, 7)]
)
def test_steps_are_the_whole_batches_of_all_epochs(name, rows, steps):
    given = networks.task(name, TINY)
    assert len(given.load().train[0]) == rows
    assert (given.examples, given.steps, given.labels) == (rows, steps, {"network": name})


def test_steps_are_those_that_training_takes():
    given = networks.task("mlp", TINY)
    history = train(
        first_order(given.objective, optax.sgd(0.1)),
        jax.jit(given.init)(),
        given.load(),
        epochs=given.epochs,
        batch_size=given.batch_size,
        key=jax.random.key(0),
        evaluate=False,
        progress=False,
    )
    assert len(history.loss) == given.steps


def test_layers_are_as_wide_and_as_many_as_asked_for():
    shapes = {
        name: jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(networks.task(name, TINY).init))
        for name in networks.NETWORKS
    }
    assert [layer["weight"] for layer in shapes["mlp"].values()] == [(784, 5), (5, 3), (3, 10)]
    for name in ("encoder", "decoder"):
        assert shapes[name]["embedding"]["weight"] == (text.VOCABULARY, 8)
        assert "block_0_qkv" in shapes[name]
        assert "block_1_qkv" not in shapes[name]


@pytest.mark.parametrize("stretches, last", [(1, 4), (2, 2), (3, 1)])
def test_the_last_stretch_of_the_steps_counts(stretches, last):
    assert networks.task("mlp", TINY, stretches).last == last


def test_the_encoder_guesses_some_of_the_characters_that_the_decoder_reads():
    encoder, decoder = (
        networks.task(name, TINY).load().train[1] for name in ("encoder", "decoder")
    )
    asked = encoder >= 0
    assert 0.1 < asked.mean() < 0.2
    np.testing.assert_array_equal(encoder[asked], decoder[asked])
    assert decoder.min() >= 0
