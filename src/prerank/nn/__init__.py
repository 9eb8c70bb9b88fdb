"""Blocks that several models share; each works on CPU or GPU, in float32 or float64."""

from prerank.nn.attention import HistoryAttention, TokenAttention
from prerank.nn.encoders import Encoders
from prerank.nn.features import FeatureEncoder, used_features
from prerank.nn.history import Histories, HistoryPooling, encode_events, last_events
from prerank.nn.hstu import HSTUStack, HSTUState
from prerank.nn.linear import RowKind, SplitLinear
from prerank.nn.mlp import MLP, finish, linear
from prerank.nn.tables import FusedTables

__all__ = [
    "MLP",
    "Encoders",
    "FeatureEncoder",
    "FusedTables",
    "HSTUStack",
    "HSTUState",
    "Histories",
    "HistoryAttention",
    "HistoryPooling",
    "RowKind",
    "SplitLinear",
    "TokenAttention",
    "encode_events",
    "finish",
    "last_events",
    "linear",
    "used_features",
]
