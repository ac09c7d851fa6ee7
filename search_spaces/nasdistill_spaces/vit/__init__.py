"""`vit`: students of vision transformers, cut from the teacher's weights."""

from nasdistill_spaces.vit.model import VitNet, VitShape
from nasdistill_spaces.vit.space import SuperVit, Vit, VitOptions

__all__ = ["SuperVit", "Vit", "VitNet", "VitOptions", "VitShape"]
