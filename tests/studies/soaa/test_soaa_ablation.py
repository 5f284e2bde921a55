from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from soaa_edu import Objective, first_order, softmax_cross_entropy
from soaa_edu.data import Dataset
from soaa_edu.models import mlp
from soaa_edu.studies.methods import label
from soaa_edu.studies.networks import Size
from soaa_edu.studies.race import Task
from soaa_edu.studies.soaa import soaa_ablation as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN

TINY = Size(64, 3, 16, (4,), 128, 8, 4, 8, 1)
SETTINGS = study.Settings(size=TINY._asdict(), tuning_values=1, seeds=1, refined=())
LOSSES = dict.fromkeys(study.FIELD, 0.6) | {"soaa": 0.5}
JUMPS = dict.fromkeys(study.FIELD, 0.1) | {"soaa": 0.05}
SHARES = {"soaa": 0.3, "soaa_sherman_morrison": 0.4}
OTHERS = "adam_with_others_dt"


@pytest.fixture
def results(made_up, runs):
    """Made-up results: final losses, the zigzag of each loss curve, the Fisher's share.

    A number of a method is the same for all seeds, or there is one for each. Losses and shares on
    the decoder may differ: ``{"losses": ..., "shares": ...}``.
    """

    def make(losses=(), jumps=(), shares=(), on_decoder=(), best=(), seeds=3):
        cells = {}
        for network in ("mlp", "decoder"):
            there = dict(on_decoder) if network == "decoder" else {}
            ends = LOSSES | dict(losses) | there.get("losses", {})
            decided = SHARES | dict(shares) | there.get("shares", {})
            for method in study.FIELD:
                jump = np.broadcast_to((JUMPS | dict(jumps))[method], seeds)
                share = np.broadcast_to(decided.get(method, 0.0), seeds)
                cells[f"method={method} network={network}"] = runs(
                    ends[method],
                    seeds=seeds,
                    best={"learning_rate": dict(best).get(method, 0.004)},
                    steps=[80] * seeds,
                    loss=2 + jump[:, None] * (-1.0) ** np.arange(40),
                    info=[
                        {
                            "curvature_share": np.full(40, one),
                            "trust_scale_low": np.linspace(1, 0.75, 40),
                            "trust_scale_high": np.linspace(2, 1.25, 40),
                        }
                        for one in share
                    ],
                )
            cells[f"dt=soaa network={network}"] = {"dt": np.ones((seeds, 80))}
        return made_up("soaa_ablation", cells)

    return make


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"losses": {"soaa_still": 0.4}}, IN_PART),
        ({"losses": {"soaa_still": [0.4, 0.6, 0.6]}}, IN_PART),
        ({"jumps": {"soaa": 0.2}}, IN_PART),
        ({"jumps": {"soaa": [0.05, 0.05, 0.2]}}, IN_PART),
        ({"on_decoder": {"losses": {OTHERS: 0.4}}}, IN_PART),
        ({"on_decoder": {"losses": {OTHERS: [0.4, 0.6, 0.6]}}}, IN_PART),
        ({"losses": {OTHERS: 0.4}}, DOES_NOT_HOLD),
        ({"losses": {OTHERS: 0.502}}, DOES_NOT_HOLD),
        ({"losses": {"soaa": 0.7}, "jumps": {"soaa": 0.2}}, DOES_NOT_HOLD),
        ({"losses": {OTHERS: [0.4, 0.6, 0.6]}}, OPEN),
    ],
)
def test_a6_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes))["A6"] == answer


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"shares": {"soaa_sherman_morrison": 0.0}}, HOLDS),
        ({"on_decoder": {"shares": {"soaa": 0.001}}}, IN_PART),
        ({"on_decoder": {"shares": {"soaa": [0.001, 0.3, 0.02]}}}, IN_PART),
        ({"shares": {"soaa": 0.001}}, DOES_NOT_HOLD),
        ({"shares": {"soaa": 0.001, "soaa_sherman_morrison": 0.0}}, DOES_NOT_HOLD),
        ({"shares": {"soaa": [0.001, 0.3, 0.02]}}, OPEN),
    ],
)
def test_a7_can_come_out_every_way(answers, results, changes, answer):
    assert answers(results(**changes))["A7"] == answer


def test_roughness_is_the_height_of_a_zigzag_in_the_second_half_alone(results):
    made_up = results(jumps={"soaa": [0.05, 0.1, 0.0]})
    rough = study.roughness(made_up, "soaa", "mlp")
    np.testing.assert_allclose(rough, [0.1, 0.2, 0], rtol=1e-5, atol=1e-9)
    for run in made_up["cells"]["method=soaa network=mlp"]["runs"]:
        run["loss"] = np.r_[np.linspace(9, 3, 20), np.full(20, 3.0)]
    np.testing.assert_array_equal(study.roughness(made_up, "soaa", "mlp"), 0)


def test_the_table_has_every_method_with_its_rate_and_whether_soaa_is_below_it(results):
    losses = {"tadam": [0.5, 0.4, 0.6], "soaa_gamma_high": 0.3}
    made_up = results(losses, best=dict.fromkeys(("soaa", *study.BORROWERS), 0.016))
    rows = {row.pop("method"): row for row in study.rows(made_up, "mlp")}
    assert list(rows) == [label(method) for method in study.FIELD]
    assert rows["SOAA"] == {
        "learning rate": "0.016",
        "loss": "0.5000 ± 0.0000",
        "SOAA below it": "",
        "roughness": "0.1000",
    }
    assert rows["Adam with another run's dt"] == {
        "learning rate": "0.016",
        "loss": "0.6000 ± 0.0000",
        "SOAA below it": "yes",
        "roughness": "0.2000",
    }
    assert rows["Adam"]["learning rate"] == "0.004"
    assert rows["TAdam"]["loss"] == "0.5000 ± 0.1000"
    assert rows["TAdam"]["SOAA below it"] == "open"
    assert rows["SOAA, γ = 0.75"]["SOAA below it"] == "no"


def test_the_figure_shows_dt_share_and_losses_of_each_network(draw, results):
    drawing = draw(results())
    scales, shares, losses = np.reshape(drawing.axes, (3, 2))
    assert [axes.get_title() for axes in scales] == ["MLP on MNIST", "decoder, next character"]
    for row, lines in ((scales, 4), (shares, 2), (losses, 4)):
        assert len(row[0].lines) == len(row[1].lines) == lines
        shown = [line.get_label() for line in row[1].lines if line.get_label()[0] != "_"]
        assert [text.get_text() for text in row[1].get_legend().get_texts()] == shown


def test_two_methods_take_over_what_soaa_had_tuned_and_its_recorded_dt():
    cells = study.cells(SETTINGS)
    for network in ("mlp", "decoder"):
        tuned, recorded = f"method=soaa network={network}", f"dt=soaa network={network}"
        assert cells[recorded].needs == (tuned,)
        for method in study.BORROWERS:
            assert cells[f"method={method} network={network}"].needs == (tuned, recorded)
    assert len(cells) == 2 * (len(study.FIELD) + 1)


def test_soaa_with_and_without_its_dt_is_tuned_finely_where_the_settings_say_so():
    coarse = study.cells(SETTINGS)
    finer = study.cells(SETTINGS._replace(refined=("mlp",), refined_seeds=4))
    tuned, recorded = (f"{of} network=mlp search=refined" for of in ("method=soaa", "dt=soaa"))
    assert {name: finer[name].needs for name in finer if name not in coarse} == {
        tuned: ("method=soaa network=mlp",),
        "method=soaa_still network=mlp search=refined": ("method=soaa_still network=mlp",),
        recorded: (tuned,),
        **{
            f"method={method} network=mlp search=refined": (tuned, recorded)
            for method in study.BORROWERS
        },
    }


def test_soaas_schedules_are_given_to_adam_on_the_same_seed_and_on_the_next(monkeypatch):
    tuned = {"search": {"best": {"learning_rate": 0.008}}, "runs": [{}, {}, {}]}
    monkeypatch.setattr(study, "recorded_scales", lambda given, rate, seed: f"dt of {seed}")
    monkeypatch.setattr(study, "adam_on_schedule", lambda given, rate, scales: (rate, scales))
    monkeypatch.setattr(study, "training_run", lambda run_by, seed, *_, **options: (run_by, seed))
    cells = study.cells(SETTINGS._replace(networks=("mlp",)))
    recorded = cells["dt=soaa network=mlp"].compute(tuned)
    assert recorded == {"dt": ["dt of 0", "dt of 1", "dt of 2"]}
    for method, takes in (("adam_with_dt", (0, 1, 2)), (OTHERS, (1, 2, 0))):
        found = cells[f"method={method} network=mlp"].compute(tuned, recorded)
        assert found["search"] == tuned["search"]
        assert found["runs"] == [((0.008, f"dt of {o}"), seed) for seed, o in enumerate(takes)]


def test_recorded_scales_are_those_with_which_each_step_was_taken(rng):
    data = Dataset(train=(rng.normal(size=(32, 3)), rng.integers(2, size=32)))
    given = Task({}, Objective(mlp([3, 2]), softmax_cross_entropy), lambda: data, 32, 6, 16)
    scales = study.recorded_scales(given, 0.01, seed=3)
    progress = np.arange(given.steps) / given.steps
    assert scales.shape == (12,)
    np.testing.assert_array_equal(scales[:2], 1)
    assert len(np.unique(scales)) > 5
    assert np.all(scales[1:] >= 0.75 ** progress[:-1] - 1e-6)
    assert np.all(scales[1:] <= 1 + 0.25 ** progress[:-1] + 1e-6)


def bowl(params, batch):
    return 0.5 * jnp.sum(batch * params**2)


def path(optimizer):
    """Where a method goes on a bowl."""
    step, key = optimizer.step, jax.random.key(0)

    def take(carry, _):
        params, state, _ = step(*carry, jnp.array([0.5, 1.0, 2.0]), key)
        return (params, state), params

    start = jnp.array([1.0, -2.0, 30.0])
    run = jax.jit(lambda start: jax.lax.scan(take, (start, optimizer.init(start)), length=4)[1])
    return np.array(run(start))


@pytest.fixture(scope="module")
def path_of_adam():
    return path(first_order(bowl, optax.adam(0.1)))


@pytest.mark.parametrize(
    "scales, rate",
    [
        (np.ones(4), 0.1),
        (np.full(4, 2.0), 0.2),
        ([1.0, 2.0, 0.5, 3.0], lambda count: 0.1 * jnp.array([1.0, 2.0, 0.5, 3.0])[count]),
    ],
)
def test_adam_on_a_schedule_is_adam_with_that_learning_rate(scales, rate):
    given = Task({}, bowl, lambda: None, 4, 1, 1)
    found = path(study.adam_on_schedule(given, 0.1, scales))
    np.testing.assert_allclose(found, path(first_order(bowl, optax.adam(rate))), rtol=1e-6)


@pytest.mark.parametrize("method", study.TUNED)
def test_only_adam_goes_where_adam_goes(method, path_of_adam):
    given = SimpleNamespace(objective=bowl, steps=4)
    found = path(study.build(method, given, 0.1))
    assert np.all(np.isfinite(found))
    assert np.allclose(found, path_of_adam, rtol=1e-4) == (method == "adam")
