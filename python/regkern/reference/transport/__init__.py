"""Definitions of the transport family."""
