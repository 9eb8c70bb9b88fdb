"""What an order is judged against: truths T1 to T5, the ranker, the world's own utility."""
