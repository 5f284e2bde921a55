"""Run all benchmarks, or those named."""

import sys
from importlib import import_module

from soaa_edu.provenance import provenance

NAMES = (
    "train_overhead",
    "sweep",
    "newton_steps",
    "hessian_free_steps",
    "kronecker_steps",
    "adam_steps",
    "hessian_products",
    "linear_solvers",
    "classic_functions",
)


def main(chosen: list[str]) -> None:
    unknown = set(chosen) - set(NAMES)
    if unknown:
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    print(", ".join(f"{name} {value}" for name, value in provenance().items()))
    for name in chosen or NAMES:
        print(f"\n== {name}")
        import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
