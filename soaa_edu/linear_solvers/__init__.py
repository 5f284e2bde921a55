"""Conjugate gradients, Lanczos, trust regions, roots and orthogonal factors of matrices."""

from soaa_edu.linear_solvers.conjugate_gradients import (
    CGPath,
    CGResult,
    cg_path,
    conjugate_gradient,
)
from soaa_edu.linear_solvers.krylov import LanczosResult, lanczos, ritz, spectral_quadrature
from soaa_edu.linear_solvers.polar import CUBIC, QUINTIC, newton_schulz, polar_factor
from soaa_edu.linear_solvers.roots import (
    RootByProducts,
    coupled_newton,
    inverse_root,
    inverse_root_by_products,
)
from soaa_edu.linear_solvers.subproblems import (
    TrustRegionResult,
    lanczos_trust_region,
    minimise_in_ball,
    steihaug_cg,
)

__all__ = [
    "CUBIC",
    "QUINTIC",
    "CGPath",
    "CGResult",
    "LanczosResult",
    "RootByProducts",
    "TrustRegionResult",
    "cg_path",
    "conjugate_gradient",
    "coupled_newton",
    "inverse_root",
    "inverse_root_by_products",
    "lanczos",
    "lanczos_trust_region",
    "minimise_in_ball",
    "newton_schulz",
    "polar_factor",
    "ritz",
    "spectral_quadrature",
    "steihaug_cg",
]
