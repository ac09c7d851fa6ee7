"""`vit` and `pit`: students of vision transformers, cut from the teacher's weights."""

from nasdistill_spaces.vit.model import VitNet, VitShape
from nasdistill_spaces.vit.pit import Pit, PitOptions
from nasdistill_spaces.vit.pit_model import PitNet, PitShape
from nasdistill_spaces.vit.space import SuperVit, Vit, VitOptions

__all__ = ["Pit", "PitNet", "PitOptions", "PitShape", "SuperVit", "Vit", "VitNet", "VitOptions", "VitShape"]
