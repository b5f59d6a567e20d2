"""Modules of the proximal family."""
