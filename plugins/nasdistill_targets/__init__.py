"""Bundled plugin targets."""
