"""Modules of the quantize family."""
