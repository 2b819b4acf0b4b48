"""A small latent prior from a folder of pictures.

Stable Diffusion needs no pretraining. This is for those who have no such prior at hand, and for the bundled model.
"""

from sidestep.pretraining.config import PretrainConfig
from sidestep.pretraining.run import pretrain

__all__ = ["PretrainConfig", "pretrain"]
