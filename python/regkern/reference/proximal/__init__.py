"""Definitions of the proximal family."""
