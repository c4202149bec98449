"""Captions over HTTP."""
