"""Definitions of sparse backprop."""
