import numpy as np
import pytest

from soaa_edu.studies import results as stored

ADAM = {"method": "adam", "network": "mlp"}


@pytest.fixture
def race(made_up, runs):
    """Two methods on two networks at batches of 64 and 128; one cell was refined."""
    cells = {
        stored.name(method=method, network=network, batch=batch): loss
        for network, loss in {"mlp": 0.5, "vit": 0.8}.items()
        for method in ("kfac", "adam")
        for batch in (64, 128)
    }
    return made_up(
        "race",
        {
            **cells,
            "method=adam network=mlp batch=64 search=refined": runs(
                0.3, seeds=5, best={"learning_rate": 0.006}
            ),
            "solver": {"errors": [1e-12]},
        },
    )


def test_a_name_lists_labels_that_are_read_back():
    assert stored.name(method="sgd_at_0.5/4", batch=64) == "method=sgd_at_0.5/4 batch=64"
    assert stored.labels_of("method=sgd_at_0.5/4 batch=64") == {
        "method": "sgd_at_0.5/4",
        "batch": "64",
    }
    assert stored.labels_of("solver") == {}
    assert stored.labels_of("at=a=b") == {"at": "a=b"}


def test_labels_select_every_cell_that_has_them_in_its_order(race):
    assert list(stored.select(race, network="vit")) == [
        "method=kfac network=vit batch=64",
        "method=kfac network=vit batch=128",
        "method=adam network=vit batch=64",
        "method=adam network=vit batch=128",
    ]
    assert list(stored.select(race, batch=64, method="kfac")) == [
        "method=kfac network=mlp batch=64",
        "method=kfac network=vit batch=64",
    ]
    assert stored.select(race, network="cnn") == {}
    assert stored.select(race, batch=6) == {}
    assert len(stored.select(race)) == 9


def test_a_refined_cell_stands_in_the_place_of_the_coarse_one_alone(race):
    found = stored.select(race, method="adam", batch=64)
    assert list(found) == ["method=adam network=mlp batch=64", "method=adam network=vit batch=64"]
    assert stored.search(race, **ADAM, batch=64)["best"] == {"learning_rate": 0.006}
    assert stored.search(race, **ADAM, batch=128)["best"] == {"learning_rate": 0.004}
    assert stored.seeds_of(race, **ADAM, batch=64) == 5
    assert stored.seeds_of(race, **ADAM, batch=128) == 3
    np.testing.assert_array_equal(stored.final_loss(race, **ADAM, batch=64), [0.3] * 5)


def test_one_cell_is_given_and_none_or_several_are_an_error(race):
    assert stored.one(race, **ADAM, batch=128)["runs"][0]["final_loss"] == 0.5
    with pytest.raises(
        ValueError, match="0 cells of race have network=cnn: its cells are method=kfac"
    ):
        stored.one(race, network="cnn")
    with pytest.raises(ValueError, match="2 cells of race have method=adam network=mlp"):
        stored.one(race, **ADAM)


def test_values_of_a_label_come_once_in_the_order_of_the_cells(race):
    assert stored.values_of(race, "method") == ["kfac", "adam"]
    assert stored.values_of(race, "batch", method="adam") == ["64", "128"]
    assert stored.values_of(race, "network", batch=64) == ["mlp", "vit"]
    assert stored.values_of(race, "search") == []
    assert stored.values_of(race, "method", network="cnn") == []


def test_runs_are_those_of_one_place_and_never_mixed(race):
    with pytest.raises(
        ValueError, match=r"method=adam names 4 places in race, not one: method=adam"
    ):
        stored.runs(race, method="adam")
    with pytest.raises(
        ValueError, match="method=shampoo names 0 places in race, not one: method=kfac"
    ):
        stored.final_loss(race, method="shampoo")


def test_a_cell_for_each_seed_is_as_good_as_one_of_all_runs(made_up, runs):
    each = runs([0.1, 0.2, 0.3])["runs"]
    apart = made_up(
        "s",
        {stored.name(method="sgd", seed=seed): run for seed, run in enumerate(each)}
        | {"method=sgd_at_0.1 seed=0": each[0]},
    )
    together = made_up("s", {"method=sgd": {"runs": each}})
    for results in (apart, together):
        np.testing.assert_array_equal(stored.final_loss(results, method="sgd"), [0.1, 0.2, 0.3])
        np.testing.assert_array_equal(
            stored.over_runs(results, "test_accuracy", method="sgd"), [[0.45, 0.9]] * 3
        )
        assert stored.steps(results, method="sgd") == 40


def test_curves_are_those_of_the_first_seeds_and_numbers_of_all(made_up, runs):
    cell = runs(0.5, info=[{"damping": [1.0, 2.0]}] * 3)
    for name in ("loss", "info"):
        del cell["runs"][2][name]
    results = made_up("s", {"method=sgd": cell})
    assert stored.over_runs(results, "loss", method="sgd").shape == (2, 4)
    assert stored.over_runs(results, "final_loss", method="sgd").shape == (3,)
    np.testing.assert_array_equal(stored.info(results, "damping", method="sgd"), [[1, 2]] * 2)


def test_a_diverged_run_counts_as_ten_and_as_knowing_nothing(made_up, runs):
    lost = runs([0.5, np.nan, np.inf, 1e6], [0.9, np.nan, 0.1, 0.2], seeds=4)
    results = made_up("s", {"method=sgd": lost})
    np.testing.assert_array_equal(stored.final_loss(results, method="sgd"), [0.5, 10, 10, 10])
    np.testing.assert_array_equal(stored.held_out_loss(results, method="sgd"), [0.6, 10, 10, 10])
    np.testing.assert_array_equal(stored.final_accuracy(results, method="sgd"), [0.9, 0, 0.1, 0.2])
    raw = stored.over_runs(results, "final_loss", method="sgd")
    np.testing.assert_array_equal(raw, [0.5, np.nan, np.nan, 1e6])
    np.testing.assert_array_equal(stored.capped([0.5, np.nan, 10.0]), [0.5, 10, 10])


@pytest.mark.parametrize("losses", [[1.0, 2.0, np.nan], [1.0, 2.0, np.nan, 7.0]])
@pytest.mark.parametrize("rivals", [[2.0, np.inf, 5.0], [2.0, np.inf, 5.0, np.nan, 3.0]])
def test_a_ratio_pairs_seeds_as_far_as_both_go(losses, rivals):
    found = np.exp(stored.log_ratio(losses, rivals))
    expected = [1 / 2, 2 / 10, 10 / 5, 7 / 10][: min(len(losses), len(rivals))]
    np.testing.assert_allclose(found, expected)


def test_two_lost_runs_are_level():
    np.testing.assert_array_equal(stored.log_ratio([np.nan, 50.0], [np.inf, np.nan]), [0, 0])


def test_a_method_is_set_beside_a_rival_in_the_same_place_seed_by_seed(race, made_up, runs):
    found = stored.beside(race, "adam", "kfac", network="mlp", batch=64)
    np.testing.assert_allclose(found, [np.log(0.3 / 0.5)] * 3)
    results = made_up("s", {"method=a": runs([0.5, 1.0, np.nan]), "method=b": runs([0.6, 1.2, 5])})
    np.testing.assert_allclose(np.exp(stored.beside(results, "a", "b")), [5 / 6, 5 / 6, 2])


def test_the_lowest_is_that_of_the_lowest_mean_where_lost_runs_count(made_up, runs):
    results = made_up("s", {"method=a": runs([0.1, 0.1, np.nan]), "method=b": 0.5, "method=c": 0.4})
    assert stored.lowest(results, ("a", "b")) == "b"
    assert stored.lowest(results, ("a", "b", "c")) == "c"


def test_costs_are_those_of_a_place(made_up, costs):
    cells = {
        "cost=step network=mlp": costs(
            {"adam": [0.1, 0.2, 0.2], "soaa": [0.2, 0.4, 0.6]}, {"soaa": 1200}
        ),
        "cost=step network=vit": costs({"adam": 1.0, "soaa": 5.0}),
    }
    results = made_up("s", cells)
    mlp = {"network": "mlp"}
    np.testing.assert_array_equal(
        stored.cost(results, "seconds_a_step", "soaa", **mlp), [0.2, 0.4, 0.6]
    )
    assert stored.cost(results, "peak_bytes", "soaa", **mlp) == 8e6
    np.testing.assert_allclose(stored.in_adam_steps(results, "soaa", **mlp), [2, 2, 3])
    assert stored.state_over_parameters(results, "soaa", **mlp) == 3.0
    assert stored.state_over_parameters(results, "soaa", network="vit") == 2.0


@pytest.mark.parametrize(
    "points, steps, middles", [(3, 3, [0.5, 1.5, 2.5]), (2, 5, [1.5, 4.0]), (1, 4, [2.0])]
)
def test_middles_are_where_the_stretches_of_a_run_lie(points, steps, middles):
    np.testing.assert_array_equal(stored.middles(points, steps), middles)
