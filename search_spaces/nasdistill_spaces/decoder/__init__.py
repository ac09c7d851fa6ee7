"""`decoder`: causal language models cut from a larger one (Minitron's sliced decoder)."""

from nasdistill_spaces.decoder.model import DecoderNet, DecoderShape
from nasdistill_spaces.decoder.options import DecoderOptions
from nasdistill_spaces.decoder.space import Decoder

__all__ = ["Decoder", "DecoderNet", "DecoderOptions", "DecoderShape"]
