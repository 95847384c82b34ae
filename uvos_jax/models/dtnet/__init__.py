"""D-Net and T-Net: target-aware object discovery and association (Zhou et al., CVPR 2021)."""

from uvos_jax.models.dtnet.dnet import SQUEEZES
from uvos_jax.models.dtnet.model import TRAINED_PARTS, VARIANTS, DTNet

__all__ = ["SQUEEZES", "TRAINED_PARTS", "VARIANTS", "DTNet"]
