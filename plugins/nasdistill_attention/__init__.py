"""Bundled plugin attention."""
