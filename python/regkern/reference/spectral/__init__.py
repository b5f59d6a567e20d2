"""Definitions of the spectral family."""
