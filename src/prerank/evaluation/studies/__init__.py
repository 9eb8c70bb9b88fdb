"""Questions that need several evaluations: seeds, quality against cost, ablations, leaks."""
