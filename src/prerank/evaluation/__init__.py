"""Evaluation: truths, protocol, statistics and cost."""
