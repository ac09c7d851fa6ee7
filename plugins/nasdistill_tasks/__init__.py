"""Bundled plugin tasks."""
