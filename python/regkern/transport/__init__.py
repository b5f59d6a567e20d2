"""Optimal transport: Sinkhorn at every scale, and sparse plans."""
