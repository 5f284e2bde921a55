"""One method, one file."""

from soaa_edu.optimizers.adam_8bit import adam_8bit
from soaa_edu.optimizers.first_order import first_order
from soaa_edu.optimizers.galore import galore
from soaa_edu.optimizers.hessian_free import hessian_free
from soaa_edu.optimizers.kfac import kfac
from soaa_edu.optimizers.martens import martens_hessian_free
from soaa_edu.optimizers.newton import newton
from soaa_edu.optimizers.protocol import Optimizer
from soaa_edu.optimizers.psgd import psgd
from soaa_edu.optimizers.shampoo import shampoo
from soaa_edu.optimizers.soaa import soaa
from soaa_edu.optimizers.soap import soap
from soaa_edu.optimizers.tadam import tadam
from soaa_edu.optimizers.trials import levenberg_marquardt
from soaa_edu.optimizers.trust_region import trust_region

__all__ = [
    "Optimizer",
    "adam_8bit",
    "first_order",
    "galore",
    "hessian_free",
    "kfac",
    "levenberg_marquardt",
    "martens_hessian_free",
    "newton",
    "psgd",
    "shampoo",
    "soaa",
    "soap",
    "tadam",
    "trust_region",
]
