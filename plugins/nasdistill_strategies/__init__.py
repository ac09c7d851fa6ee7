"""Bundled plugin ``strategies``: how a search spends its budget, and the Optuna samplers it proposes with."""

from nasdistill import hookimpl
from nasdistill.spec.component import SamplerSpec, StrategySpec

OPTUNA = "https://optuna.readthedocs.io/en/stable/reference/samplers/generated/optuna.samplers"


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
            "training_free",
            "nasdistill_strategies.training_free:TrainingFree",
            "Aging evolution or a sampler on proxies and cost alone; only the final few are measured and distilled.",
            options="nasdistill_strategies.training_free:TrainingFreeOptions",
            references=("arXiv:2303.15678", "arXiv:1802.01548"),
        ),
        StrategySpec(
            "supernet",
            "nasdistill_strategies.supernet:SupernetSearch",
            "Weights of all students of a sub-space trained at once; search by inherited score, the best distilled.",
            options="nasdistill_strategies.supernet:SupernetOptions",
            references=("arXiv:2201.12507", "arXiv:1903.05134"),
        ),
        StrategySpec(
            "random",
            "nasdistill_strategies.flat:Flat",
            "Every proposal is distilled in full, without rungs: the baseline for any strategy.",
            options="nasdistill_strategies.flat:FlatOptions",
            references=("arXiv:1902.07638",),
            left_out="Early stopping and shared weights.",
        ),
        StrategySpec(
            "exhaustive",
            "nasdistill_strategies.exhaustive:Exhaustive",
            "Every architecture of a small space, measured and distilled in full.",
            options="nasdistill_strategies.exhaustive:ExhaustiveOptions",
            references=("arXiv:1902.09635",),
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
        SamplerSpec(
            "gp",
            f"{module}:Gp",
            "Gaussian process with constrained expected improvement.",
            references=("Ament et al., NeurIPS 2023 (LogEI)", f"{OPTUNA}.GPSampler.html"),
        ),
        SamplerSpec(
            "qmc",
            f"{module}:Qmc",
            "Quasi-Monte Carlo (scrambled Sobol sequence).",
            references=(f"{OPTUNA}.QMCSampler.html",),
        ),
        SamplerSpec(
            "random",
            f"{module}:Random",
            "Independent uniform draws.",
            references=("Bergstra and Bengio 2012, JMLR 13:281-305",),
        ),
    ]
