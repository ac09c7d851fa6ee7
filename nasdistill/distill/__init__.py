"""The distillation engine: objective, step, schedule, teacher cache."""
