"""Definitions of the quantize family."""
