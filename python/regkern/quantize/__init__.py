"""Stochastic quantization noise: one rounding core for every format."""
