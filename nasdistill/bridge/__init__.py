"""The only code that touches the internals of transformers, timm, diffusers and torchvision."""
