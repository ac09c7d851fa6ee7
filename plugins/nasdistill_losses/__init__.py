"""Bundled plugin losses."""
