"""Bounds of mutual information: how high and how steady they are, and what they do for a small student.

Estimator: pairs of correlated Gaussian vectors of 20 dimensions, whose mutual information is known. Critics are trained
on fresh batches of 64 pairs; then the bound is taken on 500 more. Its mean over these says how much of the truth it
reports, its standard deviation how much it varies from batch to batch. A bound of one batch cannot exceed log(63) =
4.14 nats at alpha = 1, and about log(64 / alpha) below that.

Distillation: scikit-learn's digits, a network of two hidden layers of 16 units taught by one of 128 units. All arms of
a seed share first weights, order and number of steps; each adds one loss on the hidden layers to the loss on labels,
with one weight for all. In the second setting a tenth of the labels may be used, and the teacher's hidden layers are
there for all images. `won` counts the seeds in which an arm is more accurate than labels alone (ties count half), and
`beats mse` those in which it is more accurate than `hidden`. The worst seed is what the mean hides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from _common import finish, mean_sd, parser, start, timed
from sklearn.datasets import load_digits
from torch import Tensor, nn

from nasdistill.host import Host
from nasdistill.interfaces import Batch, ModelGeometry, Signal, Site, SiteShape, StepInfo, Trace
from nasdistill.seeds import derive_seed, seeded, torch_generator
from nasdistill.spec.component import Kind

DIMENSIONS, SAMPLES = 20, 64
BOUNDS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "nwj (alpha 0, b = 1)": ("nwj", {}),
    "tuba (alpha 0)": ("tuba", {}),
    "alpha 0.1": ("mi_alpha", {"alpha": 0.1}),
    "alpha 0.5": ("mi_alpha", {"alpha": 0.5}),
    "alpha 0.9": ("mi_alpha", {"alpha": 0.9}),
    "infonce (alpha 1)": ("infonce", {}),
}
ARMS: dict[str, tuple[str, Mapping[str, Any]] | None] = {
    "labels alone": None,
    "kd": ("kd", {}),
    "hidden (mse)": ("hidden", {}),
    "hidden_cos": ("hidden_cos", {}),
    "hidden_ce": ("hidden_ce", {}),
    "pkd": ("pkd", {}),
    **BOUNDS,
}


def geometry(widths: tuple[int, ...], label: str, classes: int | None = None) -> ModelGeometry:
    """Return a network whose layers give one vector per sample."""
    sites = {Site("hidden", i): SiteShape((width,), "vector") for i, width in enumerate(widths)}
    if classes is not None:
        sites[Site("logits")] = SiteShape((classes,), "vector")
    return ModelGeometry(sites, layers=len(widths), label=label)


def trace(layers: list[Tensor], logits: Tensor | None = None) -> Trace:
    signals = {Site("hidden", i): Signal(layer, "vector") for i, layer in enumerate(layers)}
    if logits is not None:
        signals[Site("logits")] = Signal(logits, "vector")
    return Trace(signals)


# ---- estimator -------------------------------------------------------------------------------------------------------


def gaussians(nats: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return two correlated ``(64, 20)`` samples whose mutual information is `nats`."""
    rho = math.sqrt(1 - math.exp(-2 * nats / DIMENSIONS))
    x, noise = (torch.randn(SAMPLES, DIMENSIONS, generator=generator) for _ in range(2))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def estimate(
    host: Host, name: str, options: Mapping[str, Any], nats: float, seed: int, steps: tuple[int, int]
) -> dict[str, float]:
    """Train the critics of one bound for some steps, and return what it says then on some batches more."""
    with seeded(seed, "critics", name, nats):
        loss = host.create(Kind.LOSS, name, dict(options))
        both = geometry((DIMENSIONS,), "x"), geometry((DIMENSIONS,), "y")
        loss.build(*both, {0: 0})
    optimizer = torch.optim.Adam(loss.parameters(), lr=5e-4)
    data = torch_generator(seed, "gaussians", nats)
    values = []
    for step in range(sum(steps)):
        batch = Batch({}, None, torch.arange(SAMPLES))
        x, y = gaussians(nats, data)
        with torch.set_grad_enabled(step < steps[0]):
            value = sum(loss(trace([x]), trace([y]), batch, StepInfo(step)).values())
        if step < steps[0]:
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        else:
            values.append(-value.item())
    mean, sd = mean_sd(values)
    return {"mean": mean, "sd": sd}


# ---- distillation ----------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """64 pixels -> two hidden layers -> 10 classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the hidden layers, and the logits ``(B, 10)``."""
        one = F.relu(self.first(x))
        two = F.relu(self.second(one))
        return [one, two], self.head(two)


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return 1,000 images with labels to train on and 797 to test."""
    found = load_digits()
    x, y = torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch_generator(seed, "split"))
    return x[order[:1000]], y[order[:1000]], x[order[1000:]], y[order[1000:]]


def fit(network: Network, loss: Any, data: Any, labelled: Tensor, teacher: Network | None, seed: int, epochs: int,
        weight: float) -> float:  # fmt: skip
    """Train, and return the accuracy on the test images."""
    x, y, test_x, test_y = data
    parameters = [*network.parameters(), *(loss.parameters() if loss is not None else ())]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    order = torch_generator(seed, "order")
    steps = epochs * (len(x) // SAMPLES)
    with torch.no_grad():
        heard = None if teacher is None else teacher(x)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(epochs):
        shuffled = torch.randperm(len(x), generator=order)
        for start_ in range(0, len(x) - SAMPLES + 1, SAMPLES):
            index = shuffled[start_ : start_ + SAMPLES]
            layers, logits = network(x[index])
            there = labelled[index]
            total = F.cross_entropy(logits[there], y[index][there]) if bool(there.any()) else logits.sum() * 0
            if loss is not None and heard is not None:
                known = trace([layer[index] for layer in heard[0]], heard[1][index])
                terms = loss(trace(layers, logits), known, Batch({}, None, index), StepInfo())
                total = total + weight * sum(terms.values())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return float((network(test_x)[1].argmax(1) == test_y).float().mean())


def distil(host: Host, seed: int, epochs: int, weight: float) -> list[dict[str, Any]]:
    """Return the accuracies of all arms of one seed, in both settings."""
    data = digits(seed)
    everything = torch.ones(len(data[0]), dtype=torch.bool)
    few = torch.zeros_like(everything)
    few[: len(few) // 10] = True
    with seeded(seed, "teacher"):
        teacher = Network(128)
    accuracy = fit(teacher, None, data, everything, None, derive_seed(seed, "teacher"), epochs, weight)
    found = [{"setting": "-", "arm": "teacher", "seed": seed, "accuracy": accuracy}]
    widths = geometry((16, 16), "student", 10), geometry((128, 128), "teacher", 10)
    for setting, labelled in (("all labels", everything), ("a tenth of the labels", few)):
        for arm, chosen in ARMS.items():
            with seeded(seed, "student"):
                student = Network(16)
            loss = None
            if chosen is not None:
                with seeded(seed, "loss", arm):
                    loss = host.create(Kind.LOSS, chosen[0], dict(chosen[1]))
                    loss.build(*widths, {0: 0, 1: 1})
            accuracy = fit(student, loss, data, labelled, teacher, seed, epochs, weight)
            found.append({"setting": setting, "arm": arm, "seed": seed, "accuracy": accuracy})
    return found


def wins(ours: list[float], theirs: list[float]) -> float:
    """Return in which share of the seeds the first is better; ties count half."""
    return sum((a > b) + 0.5 * (a == b) for a, b in zip(ours, theirs, strict=True)) / len(ours)


def main() -> None:
    options = parser(__doc__.splitlines()[0], seeds=8)
    options.add_argument("--weight", type=float, default=1.0, metavar="W", help="of every loss (default 1)")
    options.add_argument("--part", choices=("estimator", "digits"), help="one of the two parts alone")
    args = options.parse_args()
    start(args)
    host = Host.load(third_party=False)
    seeds = range(1 if args.quick else args.seeds)
    truths = (2, 6) if args.quick else (2, 4, 6, 8, 10)
    steps, epochs, repeats = ((20, 10), 1, 1) if args.quick else ((2000, 500), 40, min(2, args.seeds))
    rows: list[dict[str, Any]] = []
    for bound, (name, chosen) in BOUNDS.items() if args.part != "digits" else ():
        with timed(bound):
            for nats in truths:
                runs = [estimate(host, name, chosen, float(nats), seed, steps) for seed in range(repeats)]
                rows.append(
                    {
                        "part": "estimator", "what": bound, "setting": f"{nats} nats", "runs": runs,
                        "value": mean_sd([run["mean"] for run in runs])[0],
                        "sd": mean_sd([run["sd"] for run in runs])[0],
                        "worst": min((run["mean"] for run in runs), key=lambda found, truth=nats: -abs(found - truth)),
                    }
                )  # fmt: skip
    found: list[dict[str, Any]] = []
    for seed in seeds if args.part != "estimator" else ():
        with timed(f"digits, seed {seed}"):
            found += distil(host, seed, epochs, args.weight)

    def of(setting: str, arm: str) -> list[float]:
        return [100 * run["accuracy"] for run in found if (run["setting"], run["arm"]) == (setting, arm)]

    for setting, arm in dict.fromkeys((run["setting"], run["arm"]) for run in found):
        scores = of(setting, arm)
        mean, sd = mean_sd(scores)
        rows.append(
            {
                "part": "digits", "what": arm, "setting": setting, "value": mean, "sd": sd, "worst": min(scores),
                "won": None if arm in ("teacher", "labels alone") else wins(scores, of(setting, "labels alone")),
                "beats_mse": None if arm in ("teacher", "hidden (mse)") else wins(scores, of(setting, "hidden (mse)")),
                "runs": scores,
            }
        )  # fmt: skip
    finish(
        args,
        rows,
        [
            ("part", "part", ""), ("setting", "setting", ""), ("what", "what", ""), ("value", "value", ".2f"),
            ("sd", "sd", ".2f"), ("worst", "worst seed", ".2f"), ("won", "won", ".2f"),
            ("beats_mse", "beats mse", ".2f"),
        ],
        {
            "notes": [
                "estimator: nats, mean of the bound and its sd from batch to batch; worst: the seed farthest from the "
                "truth.",
                "digits: test accuracy in per cent, sd over seeds; won: share of seeds ahead of labels alone.",
            ],
            "steps": steps, "epochs": epochs, "weight": args.weight,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
