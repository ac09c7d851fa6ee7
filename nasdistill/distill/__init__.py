"""The distillation engine: objective, step, schedule, teacher cache.

::

    cache = TeacherCache(folder)
    result = train(student, task, teacher, objective_config, training, epochs=20, seed=0, data_seed=0, host=host,
                   cache=cache)
    result.model, result.evaluation, result.history
    evaluate(model, task, "test")
"""

from nasdistill.distill.cache import TeacherCache
from nasdistill.distill.engine import TrainingResult, train
from nasdistill.distill.evaluation import evaluate, evaluate_test, no_better_than_chance
from nasdistill.distill.objective import Objective
from nasdistill.distill.recipes import StageRunner
from nasdistill.distill.stepping import EpochReport
from nasdistill.distill.teaching import fill_cache

__all__ = [
    "EpochReport", "Objective", "StageRunner", "TeacherCache", "TrainingResult", "evaluate", "evaluate_test",
    "fill_cache", "no_better_than_chance", "train",
]  # fmt: skip
