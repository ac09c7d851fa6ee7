"""The search: study, rungs, Pareto front."""
