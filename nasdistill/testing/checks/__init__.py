"""One module of checks per kind, and the rules of every kind in `common`."""
