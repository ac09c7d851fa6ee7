"""The host: finds plugins, keeps a broken one from harming the others, and hands out components by name."""
