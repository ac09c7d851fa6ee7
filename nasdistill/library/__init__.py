"""Runs and students for those who use them: load, build, export, train longer."""
