"""The run directory and saved students."""
