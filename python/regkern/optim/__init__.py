"""Optimizers that do more in their one pass over the parameters."""

from regkern.optim.stochastic import SGD, AdamW

__all__ = ["SGD", "AdamW"]
