"""Pre-ranking for recommender cascades: request logs, models, cascades, evaluation."""

__version__ = "0.1.0"
