"""refmoe: the reference for mixture-of-experts layers, forward and backward, bit for bit.

    config -> init_params -> moe_forward -> moe_backward

`import refmoe` needs NumPy alone; the law is in `spec/`, the C kernels are optional and give the same bits.
"""

__version__ = "0.1.0"
SPEC_VERSION = 1

from .config import (  # noqa: E402  (the versions come first: other modules read them)
    BalanceLoss,
    CommunicationLoss,
    DeviceLoss,
    DispatchConfig,
    ExpertsConfig,
    ImportanceLoss,
    LoadLoss,
    LossesConfig,
    MoEConfig,
    MutualInformationLoss,
    OrthogonalityLoss,
    RoutingConfig,
    ZLoss,
)
from .inputs import Given  # noqa: E402
from .layer import MoEGrads, MoERecord, moe_backward, moe_forward  # noqa: E402
from .losses import Losses, update_selection_bias  # noqa: E402
from .numerics import Numerics  # noqa: E402
from .recipes import MoEParams, SharedParams, init_params  # noqa: E402

# The roof is reached only when it is asked for, so that importing refmoe stays quick.
_ROOF = {
    "load_preset": ("models.presets", "load_preset"),
    "check_gradients": ("check", "check_gradients"),
    "show_config": ("info", "show_config"),
    "encodings": ("encodings", None),
    **{wing: (wing, None) for wing in ("golden", "models", "compare", "testing", "integrations", "lab", "bench")},
}


def __getattr__(name):
    if name not in _ROOF:
        raise AttributeError(f"module 'refmoe' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _ROOF[name]
    found = import_module(f"{__name__}.{module}")
    return found if attribute is None else getattr(found, attribute)


def __dir__():
    return sorted({*__all__, *_ROOF, "__version__"})


__all__ = [
    "SPEC_VERSION",
    "BalanceLoss",
    "CommunicationLoss",
    "DeviceLoss",
    "DispatchConfig",
    "ExpertsConfig",
    "Given",
    "ImportanceLoss",
    "LoadLoss",
    "Losses",
    "LossesConfig",
    "MoEConfig",
    "MoEGrads",
    "MoEParams",
    "MoERecord",
    "MutualInformationLoss",
    "Numerics",
    "OrthogonalityLoss",
    "RoutingConfig",
    "SharedParams",
    "ZLoss",
    "check_gradients",
    "init_params",
    "load_preset",
    "moe_backward",
    "moe_forward",
    "show_config",
    "update_selection_bias",
]
