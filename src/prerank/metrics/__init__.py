"""Metrics as pure float64 functions over arrays: exact with ties, no loop over requests."""

from __future__ import annotations

from prerank.metrics.binary import (
    auc,
    calibration_error,
    calibration_ratio,
    log_loss,
    normalized_entropy,
    sigmoid,
)
from prerank.metrics.grouped import GroupedAUC, gauc
from prerank.metrics.off_policy import doubly_robust, importance_weights, ips, snips
from prerank.metrics.ranking import (
    hit_rate,
    mrr,
    ndcg_at_k,
    per_request_auc,
    precision_at_k,
    recall_at_k,
    top_order,
)

__all__ = [
    "GroupedAUC",
    "auc",
    "calibration_error",
    "calibration_ratio",
    "doubly_robust",
    "gauc",
    "hit_rate",
    "importance_weights",
    "ips",
    "log_loss",
    "mrr",
    "ndcg_at_k",
    "normalized_entropy",
    "per_request_auc",
    "precision_at_k",
    "recall_at_k",
    "sigmoid",
    "snips",
    "top_order",
]
