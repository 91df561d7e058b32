"""How a network is run over an image of any size."""

from adl_monai.inferers.tiled import TiledInferer

__all__ = ["TiledInferer"]
