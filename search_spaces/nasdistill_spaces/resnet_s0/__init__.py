"""`resnet_s0`: CIFAR ResNets with a searched number of blocks per stage."""

from nasdistill_spaces.resnet_s0.model import ResNetS0Net
from nasdistill_spaces.resnet_s0.space import ResNetS0, ResNetS0Options

__all__ = ["ResNetS0", "ResNetS0Net", "ResNetS0Options"]
