"""Bundled plugin teachers."""
