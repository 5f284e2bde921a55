"""One method, one file."""

from soaa_edu.optimizers.adam_8bit import adam_8bit, scale_by_adam_8bit
from soaa_edu.optimizers.dropout import with_dropout
from soaa_edu.optimizers.ekfac import ekfac
from soaa_edu.optimizers.first_order import first_order
from soaa_edu.optimizers.galore import galore, scale_by_galore
from soaa_edu.optimizers.hessian_free import hessian_free
from soaa_edu.optimizers.kfac import kfac
from soaa_edu.optimizers.kl_shampoo import kl_shampoo, scale_by_kl_shampoo
from soaa_edu.optimizers.martens import martens_hessian_free
from soaa_edu.optimizers.newton import newton
from soaa_edu.optimizers.protocol import Optimizer
from soaa_edu.optimizers.psgd import psgd, scale_by_psgd
from soaa_edu.optimizers.shampoo import scale_by_shampoo, shampoo
from soaa_edu.optimizers.soaa import scale_by_soaa, soaa
from soaa_edu.optimizers.soap import scale_by_soap, soap
from soaa_edu.optimizers.tadam import scale_by_tadam, tadam
from soaa_edu.optimizers.trials import levenberg_marquardt
from soaa_edu.optimizers.trust_region import trust_region

__all__ = [
    "Optimizer",
    "adam_8bit",
    "ekfac",
    "first_order",
    "galore",
    "hessian_free",
    "kfac",
    "kl_shampoo",
    "levenberg_marquardt",
    "martens_hessian_free",
    "newton",
    "psgd",
    "scale_by_adam_8bit",
    "scale_by_galore",
    "scale_by_kl_shampoo",
    "scale_by_psgd",
    "scale_by_shampoo",
    "scale_by_soaa",
    "scale_by_soap",
    "scale_by_tadam",
    "shampoo",
    "soaa",
    "soap",
    "tadam",
    "trust_region",
    "with_dropout",
]
