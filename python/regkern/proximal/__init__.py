"""Proximal operators, projections, penalties and thresholds over tensors and whole networks."""
