import os
import subprocess
import sys

import jax
import pytest
from filelock import FileLock

import soaa_edu
from soaa_edu import claims, cli, studies
from soaa_edu.data import images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in which the command looks for results, and puts them."""
    monkeypatch.setattr(studies, "results_folder", lambda: tmp_path)
    return tmp_path


def test_reproduce_stores_the_study_and_tells_its_verdicts(tmp_path, capsys):
    assert cli.main(["reproduce", "inverting_gpt4", "--output", str(tmp_path)]) == 0
    stored, verdict, *clauses = capsys.readouterr().out.splitlines()
    assert stored == f"{tmp_path}/inverting_gpt4.quick.json and .png"
    assert verdict == "    S9: holds in part"
    assert [clause.split()[0] for clause in clauses] == ["yes:", "no:"]
    assert (tmp_path / "inverting_gpt4.quick.json").exists()


def test_reproduce_takes_a_scale_and_its_folder_by_itself(folder, capsys):
    assert cli.main(["reproduce", "inverting_gpt4", "--scale", "laptop"]) == 0
    assert (folder / "inverting_gpt4.laptop.png").exists()


def test_reproduce_all_takes_every_study(folder, monkeypatch, capsys):
    monkeypatch.setattr(studies, "NAMES", ("inverting_gpt4",))
    assert cli.main(["reproduce", "all"]) == 0
    assert (folder / "inverting_gpt4.quick.json").exists()


def test_workers_compute_the_same_numbers(folder, capsys):
    assert cli.main(["reproduce", "newton_on_quadratics", "--output", str(folder / "one")]) == 0
    arguments = ["reproduce", "newton_on_quadratics", "--workers", "1"]
    assert cli.main([*arguments, "--output", str(folder / "other")]) == 0
    one, other = (
        studies.stored("newton_on_quadratics", "quick", folder / name)["cells"]
        for name in ("one", "other")
    )
    assert one == other


def test_no_minutes_leave_a_study_to_the_next_run(folder, capsys):
    assert cli.main(["reproduce", "newton_on_quadratics", "--minutes", "0"]) == 0
    out = capsys.readouterr().out
    assert out == "newton_on_quadratics: 5 of 5 cells are missing, the same command goes on\n"
    assert not list(folder.glob("newton*"))


@pytest.mark.parametrize("minutes", ["nan", "-1", "soon"])
def test_minutes_are_a_number_of_zero_or_more(minutes, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["reproduce", "inverting_gpt4", "--minutes", minutes])
    assert end.value.code == 2
    assert f"invalid minutes value: '{minutes}'" in capsys.readouterr().err


def test_the_gpu_scale_is_for_a_gpu_unless_asked_for_anyway(folder, capsys):
    assert cli.main(["reproduce", "inverting_gpt4", "--scale", "gpu"]) == 2
    assert "give --anyway, which takes about 0 s on a CPU" in capsys.readouterr().err
    assert cli.main(["reproduce", "inverting_gpt4", "--scale", "gpu", "--anyway"]) == 0
    assert "The gpu scale takes about 0 s on a CPU." in capsys.readouterr().err
    assert (folder / "inverting_gpt4.gpu.json").exists()


def test_the_plan_is_shown_and_carried_out(folder, monkeypatch, capsys):
    monkeypatch.setattr(studies, "NAMES", ("inverting_gpt4",))
    assert cli.main(["plan"]) == 0
    assert "inverting_gpt4  0 of 1" in capsys.readouterr().out
    assert cli.main(["plan", "--run"]) == 0
    out = capsys.readouterr().out
    assert "inverting_gpt4.quick.json and .png" in out
    assert "inverting_gpt4  1 of 1" in out


def test_an_unknown_device_is_named_and_the_package_runs_from_its_checkout(tmp_path):
    command = [sys.executable, "-m", "soaa_edu", "doctor"]
    found = subprocess.run(
        command,
        env=os.environ | {"JAX_PLATFORMS": "abacus"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert "JAX cannot use the device" in found.stderr
    assert "set JAX_PLATFORMS to cpu or cuda" in found.stderr
    assert "Traceback" not in found.stderr


def test_list_shows_studies_claims_and_what_is_stored(folder, capsys):
    studies.reproduce("inverting_gpt4", "laptop", folder)
    capsys.readouterr()
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "newton_on_mnist: Newton on MNIST, undamped and damped (S2, S3, S4, S5)" in lines
    at = lines.index("inverting_gpt4: What it would take to invert GPT-4's Hessian (S9)")
    words = [line.split() for line in lines[at + 1 : at + 4]]
    assert words == [
        ["quick", "-", "0", "s"],
        ["laptop", "stored", "0", "s"],
        ["gpu", "-", "0", "s"],
    ]


def test_draw_makes_every_stored_picture_anew_from_its_numbers(folder, monkeypatch, capsys):
    monkeypatch.setattr(studies, "NAMES", ("inverting_gpt4", "newton_on_mnist"))
    for scale in ("quick", "laptop"):
        studies.reproduce("inverting_gpt4", scale, folder)
        (folder / f"inverting_gpt4.{scale}.png").unlink()
    monkeypatch.setattr(studies, "reproduce", None)
    capsys.readouterr()
    assert cli.main(["draw", "all"]) == 0
    pictures = [str(folder / f"inverting_gpt4.{scale}.png") for scale in ("quick", "laptop")]
    assert capsys.readouterr().out.splitlines() == pictures
    assert sorted(map(str, folder.glob("*.png"))) == sorted(pictures)


def test_claims_prints_the_report(folder, capsys):
    assert cli.main(["claims", "S1", "S9"]) == 0
    assert capsys.readouterr().out == claims.report("S1", "S9", folder=folder) + "\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["reproduce", "no_such_study"], "soaa-edu: the study must be one of"),
        (["reproduce", "inverting_gpt4", "--scale", "huge"], "soaa-edu: scale must be one of"),
        (["draw", "no_such_study"], "soaa-edu: the study must be one of"),
        (["claims", "S99"], "soaa-edu: the claim must be one of"),
    ],
)
def test_a_mistake_gets_a_message_and_status_2(folder, capsys, arguments, message):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert not out


def test_a_truncated_result_gets_a_message_and_status_2(folder, capsys):
    (folder / "inverting_gpt4.quick.json").write_text('{"study": ')
    assert cli.main(["claims", "S9"]) == 2
    assert "inverting_gpt4.quick.json" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_gets_a_message_and_status_2(folder, capsys):
    file = folder / "a_file"
    file.touch()
    assert cli.main(["reproduce", "inverting_gpt4", "--output", str(file)]) == 2
    assert "a_file" in capsys.readouterr().err


def test_a_study_that_another_process_computes_gets_a_message_and_status_2(folder, capsys):
    with FileLock(folder / ".inverting_gpt4.quick.lock"):
        assert cli.main(["reproduce", "inverting_gpt4"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("soaa-edu: another process computes inverting_gpt4 at the scale quick")
    assert err.count("\n") == 1
    assert not out
    assert cli.main(["reproduce", "inverting_gpt4"]) == 0


def test_an_interruption_says_how_to_go_on(folder, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(studies, "reproduce", interrupt)
    assert cli.main(["reproduce", "inverting_gpt4"]) == 130
    assert "the same command resumes" in capsys.readouterr().err


def test_a_reader_that_closes_the_pipe_gets_no_message():
    command = "from soaa_edu import cli; raise SystemExit(cli.main(['claims', 'S9']))"
    with subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_no_command_at_all_shows_the_usage(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 2
    assert "usage: soaa-edu" in capsys.readouterr().err


def test_the_doctor_tells_versions_device_float64_and_data_files(capsys):
    assert cli.main(["doctor"]) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert told["soaa-edu"] == soaa_edu.__version__
    assert told["jax"] == jax.__version__
    assert told["platform"] == jax.devices()[0].platform
    assert told["float64"].startswith("available, by default off")
    assert told["data"].endswith(": sound")


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MNIST_FOLDER", tmp_path)


def test_the_doctor_names_every_broken_data_file(no_data, capsys):
    assert cli.main(["doctor"]) == 2
    out, err = capsys.readouterr()
    assert "sound" not in out
    assert [line for line in images.MNIST_SHA256 if f"{line} is missing" not in err] == []


def test_a_study_without_its_data_gets_a_message_and_status_2(no_data, folder, capsys):
    assert cli.main(["reproduce", "newton_on_mnist"]) == 2
    assert "train-images-idx3-ubyte.gz is missing" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_claims_are_told_in_any_encoding(encoding):
    done = subprocess.run(
        [sys.executable, "-m", "soaa_edu", "claims", "S4"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.decode(encoding)) > 100
