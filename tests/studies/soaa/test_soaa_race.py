import jax
import numpy as np
import pytest
import scipy.stats

from soaa_edu.studies import methods
from soaa_edu.studies.methods import label
from soaa_edu.studies.networks import NETWORKS, Size, task
from soaa_edu.studies.soaa import soaa_race as study
from soaa_edu.studies.verdicts import DOES_NOT_HOLD, HOLDS, IN_PART, OPEN, Clause, judge

TINY = Size(32, 1, 16, (4,), 64, 8, 4, 8, 1)
LOSSES = dict.fromkeys(study.FIELD, 0.6) | {"soaa": 0.5}
SPREADS = dict.fromkeys(study.FIELD, 0.1) | {"soaa": 0.01}
BYTES = {"soaa": 1200, "adam_8bit": 200, "galore": 300}
SECONDS = dict.fromkeys(study.FIELD, 0.2) | {"adam_8bit": 0.1}
APART = [0.3, 0.5, 0.9, 0.5, 0.6]


@pytest.fixture
def results(made_up, runs, costs):
    """Made-up results on all three networks; losses on the encoder and bytes on the MLP may differ.

    A loss is the same for all seeds, or there is one for each; so are seconds and timed repeats.
    """

    def make(
        losses=(), on_encoder=(), spreads=(), bytes=(), on_mlp=(), peaks=(), seconds=(), seeds=5
    ):
        cells = {}
        for network in NETWORKS:
            ends = LOSSES | dict(losses) | (dict(on_encoder) if network == "encoder" else {})
            for method in study.FIELD:
                spread = (SPREADS | dict(spreads))[method]
                apart = spread * scipy.stats.zscore(np.arange(seeds), ddof=1)
                cells[f"method={method} network={network}"] = runs(
                    ends[method],
                    seeds=seeds,
                    steps=[80] * seeds,
                    loss=np.linspace(2, 0.5, 40) + apart[:, None],
                )
            cells[f"cost=step network={network}"] = costs(
                SECONDS | dict(seconds),
                BYTES | dict(bytes) | (dict(on_mlp) if network == "mlp" else {}),
                {"soaa": 9e6} | dict(peaks),
            )
        return made_up("soaa_race", cells)

    return make


@pytest.mark.parametrize(
    "claim, changes, answer",
    [
        ("A2", {}, HOLDS),
        ("A2", {"losses": {"adamw": 0.4}}, IN_PART),
        ("A2", {"on_encoder": {"soaa": 0.7}}, IN_PART),
        ("A2", {"losses": {"soaa": 0.7}}, DOES_NOT_HOLD),
        ("A2", {"losses": {"adam": APART}}, OPEN),
        ("A3", {}, HOLDS),
        ("A3", {"spreads": {"adamw": 0.001}}, IN_PART),
        ("A3", {"spreads": {"soaa": 1.0}}, DOES_NOT_HOLD),
        ("A3", {"spreads": {"soaa": 0.05}}, OPEN),
        ("A4", {}, HOLDS),
        ("A4", {"losses": {"galore": 0.4}}, IN_PART),
        ("A4", {"bytes": {"galore": 2000}}, IN_PART),
        ("A4", {"losses": {"soaa": 0.7}, "bytes": {"soaa": 100}}, DOES_NOT_HOLD),
        ("A4", {"losses": {"adam_8bit": APART}}, OPEN),
        ("A8", {}, HOLDS),
        ("A8", {"losses": {"soaa": 0.603}}, HOLDS),
        ("A8", {"on_encoder": {"soaa": 0.7}}, IN_PART),
        ("A8", {"on_encoder": {"soaa": APART}}, IN_PART),
        ("A8", {"losses": {"soaa": 0.7}}, DOES_NOT_HOLD),
        ("A8", {"losses": {"soaa": APART}}, OPEN),
        ("A8", {"losses": {"soaa": 0.7}, "on_encoder": {"soaa": APART}}, OPEN),
    ],
)
def test_a2_to_a8_can_come_out_every_way(answers, results, claim, changes, answer):
    assert answers(results(**changes))[claim] == answer


@pytest.mark.parametrize(
    "changes, answer",
    [
        ({}, HOLDS),
        ({"bytes": {"adam_8bit": 230}}, HOLDS),
        ({"seeds": 2}, HOLDS),
        ({"seconds": {"adam_8bit": 0.3}}, IN_PART),
        ({"seconds": {"adam_8bit": [0.1, 0.2, 0.3]}}, IN_PART),
        ({"peaks": {"galore": 1e7}}, IN_PART),
        ({"on_mlp": {"adam_8bit": 400}}, IN_PART),
        ({"bytes": {"adam_8bit": 400}}, DOES_NOT_HOLD),
        (
            {"bytes": {"adam_8bit": 400}, "seconds": {"adam_8bit": 0.3}, "peaks": {"soaa": 7e6}},
            DOES_NOT_HOLD,
        ),
    ],
)
def test_a10_can_come_out_every_way_but_open_since_bytes_have_no_error(
    answers, results, changes, answer
):
    assert answers(results(**changes))["A10"] == answer


def test_a8_asks_the_transformers_alone(results):
    verdict = next(v for v in study.verdicts(results()) if v.claim == "A8")
    (clause,) = verdict.clauses
    assert [reading.where for reading in clause.readings] == ["encoder", "decoder"]


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("confidence", [0.95, 0.5])
def test_the_interval_of_the_spreads_is_that_of_the_f_distribution(results, seeds, confidence):
    made_up = results(spreads={"soaa": 0.05}, seeds=seeds)
    reading = study.spread_beside(made_up, "mlp", "adam")
    low, middle, high = reading.interval_at(confidence)
    assert (low + high) / 2 == pytest.approx(np.log(0.05 / 0.1), rel=1e-4)
    assert middle == pytest.approx(np.log(0.05 / 0.1), rel=1e-4)
    below = np.exp(2 * (high - np.log(0.5)))
    expected = (1 + confidence) / 2
    assert scipy.stats.f.cdf(below, seeds - 1, seeds - 1) == pytest.approx(expected, rel=1e-4)
    assert (reading.where, reading.seeds) == ("MLP", seeds)


def test_the_spread_of_one_seed_is_unknown(results):
    with pytest.warns(RuntimeWarning):
        reading = study.spread_beside(results(seeds=1), "mlp", "adam")
    verdict = judge("A3", [Clause("more stable", "spread:", "below 1.1 times", [reading])])
    assert verdict.answer == OPEN
    assert verdict.closes == "at least 3 seeds"


def test_checkpoints_are_means_over_tenths_of_the_run(results):
    made_up = results(spreads={"soaa": 0.0})
    tenths = np.linspace(2, 0.5, 40).reshape(10, 4).mean(axis=1)
    found = study.checkpoints(made_up, "soaa", "mlp")
    np.testing.assert_allclose(found, np.tile(tenths, (5, 1)), rtol=1e-5)
    steps = study.checkpoint_steps(made_up, "soaa", "mlp")
    np.testing.assert_array_equal(steps, 8 * np.arange(10) + 4)


def test_ratios_are_those_of_the_costs(results):
    made_up = results(seconds={"soaa": [0.2, 0.4, 0.6], "adam": [0.1, 0.2, 0.2]})
    np.testing.assert_allclose(study.seconds_ratio(made_up, "mlp", "soaa", "adam"), [2, 2, 3])
    assert study.bytes_ratio(made_up, "mlp", "bytes", "soaa", "adam") == 1.5


def test_the_table_has_loss_speed_and_memory_of_every_method_on_every_network(results):
    made_up = results({"kfac": [0.4, 0.5, 0.6, 0.5, 0.5]}, seconds={"kfac": 0.5})
    rows = {row.pop("method"): row for row in study.rows(made_up, "encoder")}
    assert list(rows) == [label(method) for method in study.FIELD]
    assert rows["K-FAC"] == {
        "tuned": "0.004",
        "loss": "0.500 ± 0.071",
        "test loss": "0.600 ± 0.071",
        "ms/step": "500",
        "Adam steps": "2.50",
        "state/params": "2.00",
        "peak MB": "8.0",
    }
    assert rows["SOAA"]["state/params"] == "3.00"
    head, *lines = study.table(made_up).splitlines()
    assert head.startswith("network  method")
    assert len(lines) == len(study.FIELD) * len(NETWORKS)


def test_a_table_of_seconds_from_several_devices_says_so(results):
    made_up = results()
    as_it_is = study.table(made_up)
    timed = [name for name in made_up["cells"] if name.startswith("cost")]
    made_up["origins"] = [{"device": "cpu"}, {"device": "NVIDIA H100"}]
    made_up["made"] = {cell: [i % 2, 1.0, ""] for i, cell in enumerate(timed)}
    note = "Timed on different devices, not to be compared: cpu, NVIDIA H100."
    assert study.table(made_up) == f"{as_it_is}\n{note}"


def test_the_figure_shows_losses_and_spreads_of_every_network(draw, results):
    losses, spreads = np.reshape(draw(results()).axes, (2, 3))
    assert [axes.get_title() for axes in losses] == list(NETWORKS.values())
    for row, field in ((losses, study.FIELD), (spreads, ("adam", "adamw", "soaa"))):
        labels = [label(method) for method in field]
        for axes in row:
            assert [line.get_label() for line in axes.lines] == labels
        assert [text.get_text() for text in row[-1].get_legend().get_texts()] == labels
    np.testing.assert_allclose(spreads[0].lines[-1].get_ydata(), 0.01, rtol=1e-3)


def built(method, given):
    return study.build(method, given, **{k: v for k, (v,) in study.grid(method, 1).items()})


@pytest.mark.parametrize("network", ["encoder", "decoder"])
@pytest.mark.parametrize("method", study.FIELD)
def test_every_method_takes_the_transformers_parameters(method, network):
    given = task(network, TINY)
    optimizer = built(method, given)
    batch = jax.tree.map(lambda array: array[: given.batch_size], given.load().train)

    def step(key):
        params = given.init()
        return params, optimizer.step(params, optimizer.init(params), batch, key)

    params, (moved, _, info) = jax.eval_shape(step, jax.random.key(0))
    assert params == moved
    assert info["loss"].shape == ()


@pytest.mark.parametrize("network", NETWORKS)
def test_galores_rank_is_a_quarter_of_the_width(network, monkeypatch):
    given = task(network, TINY._replace(hidden=(24, 4), width=24))
    monkeypatch.setitem(methods.BUILDERS, "galore", lambda *args, **numbers: (args[1], numbers))
    numbers = {"learning_rate": 0.1, "rank": 6, "refresh_every": 50}
    assert study.build("galore", given, learning_rate=0.1) == (given.steps, numbers)
