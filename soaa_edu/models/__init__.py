"""Networks as (init, forward) pairs that show where their dense layers are."""

from soaa_edu.models.adapters import from_equinox, from_linen, from_nnx
from soaa_edu.models.draws import Keyed
from soaa_edu.models.functions import from_function
from soaa_edu.models.language import decoder, encoder
from soaa_edu.models.layers import Model, Params, dense, init_dense
from soaa_edu.models.mlp import mlp
from soaa_edu.models.vision import cnn, vit

__all__ = [
    "Keyed",
    "Model",
    "Params",
    "cnn",
    "decoder",
    "dense",
    "encoder",
    "from_equinox",
    "from_function",
    "from_linen",
    "from_nnx",
    "init_dense",
    "mlp",
    "vit",
]
