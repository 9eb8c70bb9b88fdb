"""Metrics as pure float64 functions over arrays: exact with ties, no loop over requests."""

from __future__ import annotations

from prerank.metrics.agreement import (
    kendall_tau,
    overlap_at_k,
    pair_consistency,
    rank_agreement,
)
from prerank.metrics.binary import (
    auc,
    calibration_error,
    calibration_ratio,
    log_loss,
    normalized_entropy,
    sigmoid,
)
from prerank.metrics.cutting import gain_kept, regret_at_k, survivors, value_lost
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
    "gain_kept",
    "gauc",
    "hit_rate",
    "importance_weights",
    "ips",
    "kendall_tau",
    "log_loss",
    "mrr",
    "ndcg_at_k",
    "normalized_entropy",
    "overlap_at_k",
    "pair_consistency",
    "per_request_auc",
    "precision_at_k",
    "rank_agreement",
    "recall_at_k",
    "regret_at_k",
    "sigmoid",
    "snips",
    "survivors",
    "top_order",
    "value_lost",
]
