"""The command ``soaa-edu``."""

import argparse
import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax

from soaa_edu.data import DataFileError
from soaa_edu.engine import Place, Rehearsed, Unfinished, WorkerError
from soaa_edu.storage import StoredFileError

MISTAKES = (
    ValueError,
    OSError,
    MemoryError,
    ImportError,
    DataFileError,
    StoredFileError,
    WorkerError,
)
CPU_PACE = 300
"""Minutes on two CPU cores for one on an H100, by the arithmetic both do in float32."""


def main(arguments: list[str] | None = None) -> int:
    r"""Run the command; returns its exit status.

    A reader that has seen enough and closes the pipe, such as ``head``, is no mistake to tell of.
    What an output's encoding lacks is written as its code, such as ``\u03bb``.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        options.action(options)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MISTAKES as error:
        print(f"soaa-edu: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nsoaa-edu: interrupted; the same command resumes", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="soaa-edu", description="Reproduce the studies of second-order optimization."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("list", help="the studies, their claims and stored results")
    command.set_defaults(action=_list)

    command = commands.add_parser("reproduce", help="compute a study, or resume it")
    command.add_argument("name", metavar="NAME", help="a study, all, or the path of your own")
    _add_scale(command)
    _add_place(command)
    command.set_defaults(action=_reproduce)

    command = commands.add_parser(
        "plan", help="what is finished, what remains and how long it takes; --run computes it"
    )
    _add_scale(command)
    command.add_argument("--run", action="store_true", help="compute what remains, in this order")
    _add_place(command)
    command.set_defaults(action=_plan)

    command = commands.add_parser(
        "rehearse", help="compile a study's programs and run each for two steps, on any machine"
    )
    command.add_argument("name", metavar="NAME", help="a study, all, or the path of your own")
    command.add_argument("--scale", default="gpu", help="quick, laptop or gpu (default)")
    command.add_argument(
        "--minutes", type=minutes, default=3.0, help="for a cell at most (default: 3)"
    )
    command.set_defaults(action=_rehearse)

    command = commands.add_parser("draw", help="draw figures anew from stored results")
    command.add_argument("name", metavar="NAME", help="a study, all, or the path of your own")
    command.set_defaults(action=_draw)

    command = commands.add_parser("claims", help="the ledger of claims with verdicts")
    command.add_argument("names", metavar="CLAIM", nargs="*", help="such as S1 (default: all)")
    command.add_argument("--full", action="store_true", help="with every other number")
    command.set_defaults(action=_claims)

    command = commands.add_parser("results", help="write RESULTS.md anew from stored results")
    command.set_defaults(action=_results)

    command = commands.add_parser("doctor", help="versions, device, float64 and data files")
    command.set_defaults(action=_doctor)
    return parser


def _add_scale(command: argparse.ArgumentParser) -> None:
    command.add_argument("--scale", default="quick", help="quick (default), laptop or gpu")
    command.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where results go (default: figures)"
    )


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--minutes", type=minutes, default=float("inf"), help="begin nothing that ends later"
    )
    command.add_argument(
        "--anyway", action="store_true", help="compute the gpu scale on a CPU too, which takes long"
    )
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=int, metavar="N", help="compute in N processes of this machine"
    )
    where.add_argument(
        "--cluster", metavar="ADDRESS", help="compute on a running Dask cluster, tcp://HOST:PORT"
    )


def minutes(text: str) -> float:
    """A number of minutes, zero or more."""
    number = float(text)
    if not number >= 0:
        raise ValueError
    return number


@contextmanager
def _place(options: argparse.Namespace, names: Sequence[str]) -> Iterator[Place]:
    """Where these studies are computed; other processes have the accelerator for themselves.

    Raises:
        ValueError: the gpu scale, no GPU, and not ``--anyway``.
    """
    from soaa_edu import engine, studies

    if options.cluster is not None:
        chosen = engine.on_cluster(options.cluster)
    elif options.workers is not None:
        chosen = engine.processes(options.workers)
    else:
        chosen = engine.here()
    if options.cluster is not None or options.workers is not None:
        jax.config.update("jax_platforms", "cpu")
    with chosen as place:
        platform = place.executor.submit(engine.origin).result()["platform"]
        if options.scale == "gpu" and platform == "cpu":
            minutes = sum(studies.get(name).SCALES["gpu"].minutes for name in names)
            here = f"about {_duration(CPU_PACE * minutes)} on a CPU"
            if not options.anyway:
                raise ValueError(
                    "the gpu scale needs a GPU, and JAX sees none: install JAX for it (pip install "
                    f'"soaa-edu[cuda]"), or give --anyway, which takes {here}'
                )
            print(f"The gpu scale takes {here}.", file=sys.stderr)
        yield place


def _list(options: argparse.Namespace) -> None:
    from soaa_edu import studies

    for name in studies.NAMES:
        study = studies.get(name)
        print(f"{name}: {study.TITLE} ({', '.join(study.CLAIMS)})")
        for scale in studies.SCALES:
            stored = (studies.results_folder() / f"{name}.{scale}.json").exists()
            minutes = study.SCALES[scale].minutes
            print(f"    {scale:7}{'stored' if stored else '-':8}{_duration(minutes)}")


def _reproduce(options: argparse.Namespace) -> None:
    from soaa_edu import studies

    deadline = time.monotonic() + 60 * options.minutes
    names = studies.in_plan_order() if options.name == "all" else [options.name]
    for name in names:
        studies.check_scale(name, options.scale)
    with _place(options, names) as place:
        for name in names:
            study = studies.reproduce(
                name, options.scale, options.output, place=place, deadline=deadline
            )
            _tell(study, name)


def _plan(options: argparse.Namespace) -> None:
    from soaa_edu import studies

    if options.run:
        deadline = time.monotonic() + 60 * options.minutes
        with _place(options, studies.in_plan_order()) as place:
            for study in studies.carry_out(
                options.scale, options.output, place=place, deadline=deadline
            ):
                _tell(study)
    print(studies.plan_table(options.scale, options.output))


def _rehearse(options: argparse.Namespace) -> None:
    from soaa_edu import engine, studies

    failed = []
    for name in studies.in_plan_order() if options.name == "all" else [options.name]:
        study = studies.begun(name, options.scale)
        print(f"{name} ({options.scale})", flush=True)
        for rehearsed in engine.rehearse(study, 60 * options.minutes):
            if rehearsed.error is not None:
                failed.append(f"{rehearsed.cell} of {name}")
            print(f"    {rehearsed.cell}: {_of_rehearsal(rehearsed)}", flush=True)
    if failed:
        raise ValueError(f"not rehearsed: {', '.join(failed)}")


def _of_rehearsal(rehearsed: Rehearsed) -> str:
    if rehearsed.error is not None:
        return rehearsed.error
    programs = [
        f"{program.runs} at once, {program.gigabytes:.1f} GB"
        + ("" if program.ran else ", compiled alone")
        for program in rehearsed.programs
    ]
    return f"{rehearsed.seconds:.0f} s; " + ("; ".join(programs) or "no new program")


def _tell(study: Unfinished, name: str | None = None) -> None:
    """Where a study's results are and what they say, or what is missing of it."""
    from soaa_edu import engine, studies

    folder = study.folder or studies.results_folder()
    if study.missing:
        print(
            f"{study.name}: {len(study.missing)} of {len(study.cells)} cells are missing, the same "
            "command goes on"
        )
        return
    print(f"{folder / study.name}.{study.scale}.json and .png")
    for verdict in studies.verdicts(engine.finish(study), name):
        print(f"    {verdict.claim}: {verdict.answer}")
        for clause in verdict.clauses:
            print(f"        {clause}")


def _duration(minutes: float) -> str:
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    hours, minutes = divmod(round(minutes), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _draw(options: argparse.Namespace) -> None:
    from soaa_edu import studies

    for name in studies.NAMES if options.name == "all" else [options.name]:
        for picture in studies.redraw(name):
            print(picture)


def _claims(options: argparse.Namespace) -> None:
    from soaa_edu import claims

    print(claims.report(*options.names, full=options.full))


def _results(options: argparse.Namespace) -> None:
    from soaa_edu import findings, storage, studies

    path = studies.results_folder().parent / "RESULTS.md"
    storage.write_atomically(path, lambda file: file.write(findings.page().encode()))
    print(path)


def _doctor(options: argparse.Namespace) -> None:
    import jax
    import jax.numpy as jnp

    from soaa_edu.data.images import MNIST_FOLDER, MNIST_SHA256, read_idx
    from soaa_edu.provenance import provenance

    origin = provenance()
    default = "on" if origin.pop("float64") else "off; JAX_ENABLE_X64=1 turns it on"
    for name, value in origin.items():
        print(f"{name:12}{value}")
    with jax.enable_x64(True):
        works = jnp.ones(1, jnp.float64).dtype == jnp.float64
    print(f"{'float64':12}{'available' if works else 'not available'}, by default {default}")
    broken = []
    for file, digest in MNIST_SHA256.items():
        try:
            read_idx(MNIST_FOLDER / file, digest)
            print(f"{'data':12}{file}: sound")
        except DataFileError as error:
            broken.append(str(error))
    if broken:
        raise ValueError("\n".join(broken))
