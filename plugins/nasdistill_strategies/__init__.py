"""Bundled plugin strategies."""
