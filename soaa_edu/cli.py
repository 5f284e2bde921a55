"""The command ``soaa-edu``."""

import argparse
import os
import sys
from pathlib import Path

from soaa_edu.data import DataFileError
from soaa_edu.storage import StoredFileError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status.

    A reader that has seen enough and closes the pipe, such as ``head``, is no mistake to tell of.
    """
    options = _parser().parse_args(arguments)
    try:
        options.action(options)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, DataFileError, StoredFileError) as error:
        print(f"soaa-edu: {error}", file=sys.stderr)
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
    command.add_argument("name", metavar="NAME", help="a study, or all")
    command.add_argument("--scale", default="quick", help="quick (default), laptop or gpu")
    command.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where results go (default: figures)"
    )
    command.set_defaults(action=_reproduce)

    command = commands.add_parser("draw", help="draw figures anew from stored results")
    command.add_argument("name", metavar="NAME", help="a study, or all")
    command.set_defaults(action=_draw)

    command = commands.add_parser("claims", help="the ledger of claims with verdicts")
    command.add_argument("names", metavar="CLAIM", nargs="*", help="such as S1 (default: all)")
    command.set_defaults(action=_claims)

    command = commands.add_parser("doctor", help="versions, device, float64 and data files")
    command.set_defaults(action=_doctor)
    return parser


def _list(options: argparse.Namespace) -> None:
    from soaa_edu import studies

    for name in studies.NAMES:
        study = studies.get(name)
        print(f"{name}: {study.TITLE} ({', '.join(study.CLAIMS)})")
        for scale in studies.SCALES:
            stored = (studies.results_folder() / f"{name}.{scale}.json").exists()
            print(f"    {scale:7}{'stored' if stored else '-':8}{study.SCALES[scale].budget}")


def _reproduce(options: argparse.Namespace) -> None:
    from soaa_edu import studies

    for name in studies.NAMES if options.name == "all" else [options.name]:
        results = studies.reproduce(name, options.scale, options.output)
        folder = options.output or studies.results_folder()
        print(f"{folder / name}.{options.scale}.json and .png")
        for verdict in studies.verdicts(results):
            print(f"    {verdict.claim}: {verdict.answer}")


def _draw(options: argparse.Namespace) -> None:
    from soaa_edu import studies

    for name in studies.NAMES if options.name == "all" else [options.name]:
        for picture in studies.redraw(name):
            print(picture)


def _claims(options: argparse.Namespace) -> None:
    from soaa_edu import claims

    print(claims.report(*options.names))


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
