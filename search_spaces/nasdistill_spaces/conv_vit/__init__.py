"""`conv_vit`: image classifiers with a convolution stem and pre-norm transformer blocks."""

from nasdistill_spaces.conv_vit.model import ConvVitNet
from nasdistill_spaces.conv_vit.space import ConvVit, ConvVitOptions

__all__ = ["ConvVit", "ConvVitNet", "ConvVitOptions"]
