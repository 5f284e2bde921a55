import os
import signal
import subprocess
import sys
import time
from concurrent.futures import wait
from pathlib import Path

import jobs
import pytest

from soaa_edu import engine


def until(true, seconds=20.0):
    """Wait for something to be true, for so long at most."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_alive(pid):
    """Whether a process goes on; a zombie does not."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_here_computes_in_this_process_and_keeps_errors_for_those_who_ask():
    with engine.here() as place:
        assert place.at_once == 1
        assert place.executor.submit(jobs.pid).result() == os.getpid()
        with pytest.raises(FileNotFoundError):
            place.executor.submit(jobs.missing_file).result()


@pytest.fixture(scope="module")
def two():
    with engine.processes(2) as place:
        yield place


def test_two_processes_answer_and_share_the_machine(two):
    asked = [two.executor.submit(jobs.sleep, 0.5), two.executor.submit(jobs.pid)]
    assert asked[0].result() == 0.5
    assert asked[1].result() != os.getpid()
    cores, memory = two.executor.submit(jobs.cores_and_memory).result()
    there = sorted(os.sched_getaffinity(0))
    assert cores in (there[::2], there[1::2] or there)
    assert float(memory) == pytest.approx(0.45)


def test_the_error_of_a_job_comes_back_as_it_is_with_the_place_where_it_happened(two):
    with pytest.raises(FileNotFoundError, match="no such thing") as caught:
        two.executor.submit(jobs.missing_file).result()
    assert "in missing_file" in "".join(caught.value.__notes__)


def test_an_error_that_cannot_be_sent_comes_back_as_another(two):
    with pytest.raises(RuntimeError, match="Odd: 1"):
        two.executor.submit(jobs.odd).result()


def test_a_worker_that_dies_costs_a_second_try_alone(two, tmp_path):
    assert two.executor.submit(jobs.die_once, tmp_path).result() == "answered"


def test_a_job_that_kills_every_worker_says_so(two):
    with pytest.raises(engine.WorkerError, match=r"died twice at the same cell .exit code -9.*few"):
        two.executor.submit(jobs.die).result()
    assert two.executor.submit(jobs.sleep, 0).result() == 0


def test_giving_up_stops_what_is_computed():
    with engine.processes(1) as place:
        pid = place.executor.submit(jobs.pid).result()
        running = place.executor.submit(jobs.sleep, 60)
        place.give_up()
        with pytest.raises(engine.WorkerError, match="given up"):
            running.result()
    until(lambda: not is_alive(pid))


PARENT = """
import sys
import jobs
from soaa_edu import engine
if __name__ == "__main__":
    with engine.processes(1) as place:
        place.executor.submit(jobs.leave_pid_and_sleep, sys.argv[1]).result()
"""


def test_a_worker_dies_with_its_parent(tmp_path):
    script, told = tmp_path / "parent.py", tmp_path / "pid"
    script.write_text(PARENT)
    paths = os.pathsep.join([str(Path(jobs.__file__).parent), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": paths}
    parent = subprocess.Popen([sys.executable, script, told], env=environment)
    until(lambda: told.exists() and told.read_text())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    until(lambda: not is_alive(int(told.read_text())))


@pytest.mark.parametrize("workers", [0, -1, 1.5])
def test_no_workers_are_refused(workers):
    with (
        pytest.raises(ValueError, match="workers must be a whole number of one or more"),
        engine.processes(workers),
    ):
        pass


def test_a_cluster_loses_a_worker_and_goes_on(tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        engine.on_cluster(cluster.scheduler_address) as place,
    ):
        assert place.at_once == 2
        asked = [place.executor.submit(jobs.sleep, 0.1) for _ in range(3)]
        asked.append(place.executor.submit(jobs.die_once, tmp_path))
        wait(asked)
        assert [future.result() for future in asked] == [0.1, 0.1, 0.1, "answered"]
        with pytest.raises(FileNotFoundError):
            place.executor.submit(jobs.missing_file).result()


def test_a_cluster_that_does_not_answer_is_named():
    pytest.importorskip("distributed")
    with (
        pytest.raises(OSError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 .*start"),
        engine.on_cluster("tcp://127.0.0.1:9", patience=0.5),
    ):
        pass


def test_an_address_without_a_port_is_refused():
    pytest.importorskip("distributed")
    with (
        pytest.raises(ValueError, match="is like tcp://HOST:8786, got 'nonsense'"),
        engine.on_cluster("nonsense"),
    ):
        pass


def test_a_cluster_without_workers_is_refused():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster,
        pytest.raises(OSError, match="has no workers: start some with dask worker"),
        engine.on_cluster(cluster.scheduler_address),
    ):
        pass


def test_a_cluster_without_dask_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(ImportError, match=r'pip install "soaa-edu\[cluster\]"'),
        engine.on_cluster("tcp://127.0.0.1:9"),
    ):
        pass
