"""Bundled plugin proxies."""
