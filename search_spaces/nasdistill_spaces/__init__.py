"""Bundled plugin spaces."""
