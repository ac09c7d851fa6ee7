"""Measuring: latency protocol and statistics, counting, environment."""
