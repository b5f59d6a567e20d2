"""Modules of the spectral family."""
