"""Bundled plugin ``strategies``: how a search spends its budget, and the Optuna samplers it proposes with."""

from nasdistill import hookimpl
from nasdistill.spec.component import SamplerSpec, StrategySpec


@hookimpl
def nasdistill_strategies() -> list[StrategySpec]:
    """Return the strategies."""
    return [
        StrategySpec(
            "funnel",
            "nasdistill_strategies.funnel:Funnel",
            "Rungs of rising cost (size, proxies, latency, short and full distillation), promotion by Pareto rank.",
            options="nasdistill_strategies.funnel:FunnelOptions",
            references=("arXiv:1810.05934", "doi:10.1109/4235.996017"),
        ),
        StrategySpec(
            "random",
            "nasdistill_strategies.flat:Flat",
            "Every proposal is distilled in full, without rungs: the baseline for any strategy.",
            options="nasdistill_strategies.flat:FlatOptions",
        ),
        StrategySpec(
            "exhaustive",
            "nasdistill_strategies.exhaustive:Exhaustive",
            "Every architecture of a small space, measured and distilled in full.",
            options="nasdistill_strategies.exhaustive:ExhaustiveOptions",
        ),
    ]


@hookimpl
def nasdistill_samplers() -> list[SamplerSpec]:
    """Return the samplers."""
    module = "nasdistill_strategies.samplers"
    return [
        SamplerSpec(
            "tpe",
            f"{module}:Tpe",
            "Tree-structured Parzen estimator, multivariate, several objectives.",
            options=f"{module}:TpeOptions",
            references=("arXiv:2304.11127",),
        ),
        SamplerSpec(
            "nsga2",
            f"{module}:Nsga2",
            "NSGA-II genetic algorithm.",
            options=f"{module}:Nsga2Options",
            references=("doi:10.1109/4235.996017",),
        ),
        SamplerSpec("gp", f"{module}:Gp", "Gaussian process with constrained expected improvement."),
        SamplerSpec("qmc", f"{module}:Qmc", "Quasi-Monte Carlo (scrambled Sobol sequence)."),
        SamplerSpec("random", f"{module}:Random", "Independent uniform draws."),
    ]
