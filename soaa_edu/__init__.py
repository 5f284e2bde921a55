"""Second-order optimization for deep learning: one method, one file, readable in one sitting."""

from soaa_edu import curvature, data, kronecker, linear_solvers, models, optimizers, problems
from soaa_edu.objective import Loss, Objective, softmax_cross_entropy, squared_error
from soaa_edu.optimizers import (
    Optimizer,
    adam_8bit,
    first_order,
    galore,
    hessian_free,
    kfac,
    levenberg_marquardt,
    martens_hessian_free,
    newton,
    psgd,
    shampoo,
    soaa,
    soap,
    tadam,
    trust_region,
)
from soaa_edu.training import History, sweep, train

__version__ = "0.1.0"

__all__ = [
    "History",
    "Loss",
    "Objective",
    "Optimizer",
    "__version__",
    "adam_8bit",
    "curvature",
    "data",
    "first_order",
    "galore",
    "hessian_free",
    "kfac",
    "kronecker",
    "levenberg_marquardt",
    "linear_solvers",
    "martens_hessian_free",
    "models",
    "newton",
    "optimizers",
    "problems",
    "psgd",
    "shampoo",
    "soaa",
    "soap",
    "softmax_cross_entropy",
    "squared_error",
    "sweep",
    "tadam",
    "train",
    "trust_region",
]
