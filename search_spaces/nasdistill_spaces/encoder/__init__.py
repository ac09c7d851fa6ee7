"""`encoder` and `bert_free`: students of BERT, RoBERTa, ELECTRA and DistilBERT, cut from the teacher's weights."""

from nasdistill_spaces.encoder.free import BertFree, BertFreeOptions
from nasdistill_spaces.encoder.model import EncoderNet, EncoderShape
from nasdistill_spaces.encoder.space import Encoder, EncoderOptions
from nasdistill_spaces.encoder.superlm import SuperLm
from nasdistill_spaces.layers import LayerShape

__all__ = [
    "BertFree",
    "BertFreeOptions",
    "Encoder",
    "EncoderNet",
    "EncoderOptions",
    "EncoderShape",
    "LayerShape",
    "SuperLm",
]
