"""Latent attention and shared attention maps: how good are the starts, and what does distillation repair?

Language models over the characters of tinyshakespeare (stock GPT-2 and Llama of transformers, small), trained here.

``mla``: every layer becomes latent attention (arXiv 2503.11132) with a latent of r_kv numbers, started by the joint
decomposition or at random, with queries factored so that the number of parameters stays; it is then distilled: forward
KL to the model it came from, equal steps, nothing else. For the Llama, whose keys are rotary, with d_r = 8 of 16
channels that keep positions, taken as ours (the fastest) or as the paper's (the last rows, with a shorter table of
frequencies). "cache" counts the numbers kept per token and layer.

``echo``: two followers among six layers (arXiv 2409.14595), placed where neighbours' maps are most alike, least alike,
at random, or so that the first layer leads; then distilled (KL and hidden states of every layer), or tuned on the text
alone, for equal steps. The first two choose among all placements that leave the first layer alone. ``places`` tells how
similarity and the loss right after sharing rank all placements: -1 is what the method hopes for. Latencies of one
forward are those of the shared model, of the same model with its own maps formed explicitly, and of the fused kernel.

Losses are mean cross-entropies per character on the last tenth of the text, on fixed windows. Nothing was chosen by
these figures: one learning rate for all arms of a part, the same batches in the same order.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from _common import data_folder, finish, mean_sd, parser, say, start, timed
from torch import Tensor, nn

from nasdistill.bridge import prepare_imports
from nasdistill.bridge.attention import convert_attention, set_attention
from nasdistill.host import Host
from nasdistill.interfaces import Batch
from nasdistill.measure.rank import spearman
from nasdistill.seeds import derive_seed, seeded, torch_generator

WINDOW, BATCH = 64, 16


@dataclass(frozen=True)
class Budget:
    """How much is done."""

    teacher_steps: int
    steps: int
    ranks: tuple[int, ...]
    windows: int


FULL = Budget(900, 150, (32, 16, 8, 4), 96)
QUICK = Budget(60, 10, (16, 4), 8)


class Text:
    """The characters as numbers, in training and validation windows."""

    def __init__(self, text: str, windows: int) -> None:
        self.names = sorted(set(text))
        index = {name: number for number, name in enumerate(self.names)}
        ids = torch.tensor([index[name] for name in text])
        cut = len(ids) * 9 // 10
        self.train, held = ids[:cut], ids[cut:]
        places = torch.linspace(0, len(held) - WINDOW - 1, windows).long()
        self.validation = torch.stack([held[place : place + WINDOW] for place in places])

    def batches(self, seed: int, steps: int) -> Iterator[Tensor]:
        """Yield `steps` batches of windows ``(B, N)``, the same for the same seed."""
        generator = torch_generator(seed, "windows")
        for _ in range(steps):
            places = torch.randint(len(self.train) - WINDOW, (BATCH,), generator=generator)
            yield torch.stack([self.train[place : place + WINDOW] for place in places])


def language_model(family: str, characters: int, width: int, depth: int) -> nn.Module:
    """Return a small stock model with random weights."""
    prepare_imports()
    from transformers import AutoConfig, AutoModelForCausalLM

    if family == "gpt2":
        sizes: dict[str, Any] = {"n_embd": width, "n_layer": depth, "n_head": 4, "n_positions": 512,
                                 "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}  # fmt: skip
    else:
        sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": 4, "num_key_value_heads": 4,
                 "intermediate_size": 8 * width // 3, "max_position_embeddings": 512}  # fmt: skip
    config = AutoConfig.for_model(
        family, vocab_size=characters, bos_token_id=0, eos_token_id=0, use_cache=False, **sizes
    )
    model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def next_characters(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the mean cross-entropy of each window's next characters."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def loss_of(model: nn.Module, text: Text) -> float:
    """Return the validation loss."""
    model.eval()
    parts = [next_characters(model(input_ids=ids).logits, ids) for ids in text.validation.split(32)]
    return float(torch.stack(parts).mean())


def fit(model: nn.Module, batches: Iterator[Tensor], steps: int, loss: Callable[[Tensor], Tensor], lr: float) -> float:
    """Train in place with a warm-up and a cosine; return the seconds."""
    begin = time.perf_counter()
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    shape = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, 10 * (step + 1) / steps) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
    )
    for ids in batches:
        value = loss(ids)
        optimiser.zero_grad()
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        shape.step()
    return time.perf_counter() - begin


def trained(family: str, text: Text, width: int, depth: int, steps: int, seed: int) -> nn.Module:
    """Return a model trained on the text."""
    with seeded(seed, "benchmark", family):
        model = language_model(family, len(text.names), width, depth)
    seconds = fit(model, text.batches(derive_seed(seed, "teacher"), steps), steps,
                  lambda ids: next_characters(model(input_ids=ids).logits, ids), 3e-3)  # fmt: skip
    say(f"{family} {depth} x {width}, seed {seed}: loss {loss_of(model, text):.3f} after {seconds:.0f} s")
    return model.eval()


def distil(student: nn.Module, teacher: nn.Module, text: Text, steps: int, seed: int, *, hidden: bool = False) -> None:
    """Train a student on the teacher's distribution of the next character, and on its hidden states on request."""

    def loss(ids: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher(input_ids=ids, output_hidden_states=hidden)
        found = student(input_ids=ids, output_hidden_states=hidden)
        value = F.kl_div(found.logits.log_softmax(-1).flatten(0, 1), wanted.logits.log_softmax(-1).flatten(0, 1),
                         log_target=True, reduction="batchmean")  # fmt: skip
        if hidden:
            pairs = zip(found.hidden_states, wanted.hidden_states, strict=True)
            value = value + torch.stack([F.mse_loss(one, other) / other.var() for one, other in pairs]).mean()
        return value

    fit(student, text.batches(derive_seed(seed, "distil"), steps), steps, loss, 1e-3)


# ---- latent attention ------------------------------------------------------------------------------------------------


def run_mla(family: str, seed: int, text: Text, host: Host, budget: Budget) -> list[dict[str, Any]]:
    """Convert at each rank, with each start; return a row for each."""
    width, depth = 64, 3
    teacher = trained(family, text, width, depth, budget.teacher_steps, seed)
    own = loss_of(teacher, text)
    rows: list[dict[str, Any]] = [
        {"part": "mla", "model": family, "arm": "softmax", "seed": seed, "cache": 2 * width, "before": own,
         "teacher": own}
    ]  # fmt: skip
    starts: dict[str, dict[str, Any]] = {"SVD": {}, "random": {"init": "random"}}
    if family == "llama":
        starts = {"SVD": {"rope_dim": 8}, "SVD, last rows": {"rope_dim": 8, "rope_rows": "last"},
                  "random": {"rope_dim": 8, "init": "random"}}  # fmt: skip
    example = text.validation[:2, :24]
    for rank, (name, options) in itertools.product(budget.ranks, starts.items()):
        student = copy.deepcopy(teacher)
        with seeded(seed, "conversion"):
            set_attention(
                student,
                ("mla", {"kv_rank": rank, "q_rank": "match", **options}),
                host,
                run=lambda m: m(input_ids=example),
            )
        before = loss_of(student, text)
        distil(student, teacher, text, budget.steps, seed)
        after = loss_of(student, text)
        rows.append(
            {"part": "mla", "model": family, "arm": name, "rank": rank, "seed": seed, "teacher": own,
             "cache": rank + options.get("rope_dim", 0), "before": before, "after": after,
             "closed": 100 * (before - after) / (before - own)}
        )  # fmt: skip
        say(f"{family}, r_kv {rank}, {name}: {before:.3f} -> {after:.3f} (softmax {own:.3f})")
    return rows


# ---- shared maps -----------------------------------------------------------------------------------------------------


def partitions(layers: Sequence[int], followers: int) -> list[list[list[int]]]:
    """Return all ways to let so many layers follow the layers right before them; groups of one are left out."""
    found = []
    for cuts in itertools.combinations(range(1, len(layers)), len(layers) - followers - 1):
        edges = [0, *cuts, len(layers)]
        groups = [list(layers[a:b]) for a, b in itertools.pairwise(edges)]
        found.append([group for group in groups if len(group) > 1])
    return found


def run_echo(seed: int, text: Text, host: Host, budget: Budget, *, distilled: bool) -> list[dict[str, Any]]:
    """Share in different places; return a row for each, before anything is trained a row for all places together."""
    depth = 6
    teacher = trained("gpt2", text, 96, depth, budget.teacher_steps, seed)
    own = loss_of(teacher, text)
    example = text.validation[:2, :24]
    calibration = [Batch({"input_ids": ids}, None, torch.arange(len(ids))) for ids in text.batches(seed, 2)]

    def shared(groups: Sequence[Sequence[int]]) -> Any:
        options = {"groups": [list(group) for group in groups]}
        return convert_attention(
            teacher, ("echoatt", options), host, run=lambda m: m(input_ids=example), calibration=calibration
        )

    seen = shared([]).report
    similarity = seen["similarity"]

    def worth(groups: Sequence[Sequence[int]], matrix: Any = similarity) -> float:
        return statistics.fmean(matrix[group[0]][layer] for group in groups for layer in group[1:])

    inner, every = partitions(range(1, depth), 2), partitions(range(depth), 2)
    losses = [loss_of(shared(groups).model, text) for groups in every]
    place: dict[str, Any] = {
        "part": "places",
        "arm": f"all {len(every)}",
        "seed": seed,
        "before": statistics.fmean(losses),
    }
    for key, matrix in (("plain", similarity), ("corrected", seen["corrected_similarity"])):
        place[key] = spearman([worth(g, matrix) for g in every], losses)
    say(f"echo, seed {seed}, all places: {place}")
    if not distilled:
        return [place]
    arms = {
        "most alike": max(inner, key=worth), "least alike": min(inner, key=worth),
        "random": random.Random(derive_seed(seed, "groups")).choice(every),
        "first layers": max((groups for groups in every if groups[0][0] == 0), key=worth),
    }  # fmt: skip
    rows: list[dict[str, Any]] = [
        {"part": "echo", "arm": "own maps", "seed": seed, "before": own, "teacher": own, "map": similarity},
        place,
    ]
    for name, groups in arms.items():
        made = shared(groups)
        saved = 1 - made.report["parameters_after"] / made.report["parameters_before"]
        row = {
            "part": "echo", "arm": name, "seed": seed, "groups": groups, "similar": worth(groups), "teacher": own,
            "before": loss_of(made.model, text), "parameters": 100 * saved,
        }  # fmt: skip
        tuned = copy.deepcopy(made.model)
        distil(made.model, teacher, text, budget.steps, seed, hidden=True)
        row["after"] = loss_of(made.model, text)
        if name in ("most alike", "first layers"):
            fit(tuned, text.batches(derive_seed(seed, "distil"), budget.steps), budget.steps,
                lambda ids, model=tuned: next_characters(model(input_ids=ids).logits, ids), 1e-3)  # fmt: skip
            row["text_alone"] = loss_of(tuned, text)
        rows.append(row)
        say(f"echo, {name} {groups}: {row['before']:.3f} -> {row['after']:.3f} (own maps {own:.3f})")
    return rows


@torch.no_grad()
def latencies(text: Text, host: Host, quick: bool) -> list[dict[str, Any]]:
    """Return milliseconds of one forward of 256 and 512 characters, interleaved, with shared and with own maps."""
    model = language_model("gpt2", len(text.names), 96, 6).eval()
    example = text.validation[:2, :24]
    echo = convert_attention(model, ("echoatt", {"groups": [[1, 2], [3, 4]]}), host, run=lambda m: m(input_ids=example))
    eager: Any = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    rows = []
    for n in (256, 512):
        ids = text.train[:n][None]
        models = {"two of six shared": echo.model.eval(), "own maps, explicit": eager, "own maps, fused kernel": model}
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(5 if quick else 60):
            for name, one in models.items():
                begin = time.perf_counter()
                one(input_ids=ids)
                times[name].append(1000 * (time.perf_counter() - begin))
        rows += [
            {"part": "latency", "arm": name, "tokens": n, "ms": statistics.median(seen)} for name, seen in times.items()
        ]
    return rows


# ---- the table -------------------------------------------------------------------------------------------------------


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per arm: means over seeds."""
    arms: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        arms.setdefault((run["part"], run.get("model"), run["arm"], run.get("rank"), run.get("tokens")), []).append(run)
    rows = []
    for (part, model, arm, rank, tokens), some in arms.items():
        row: dict[str, Any] = {"part": part, "model": model, "arm": arm, "rank": rank, "tokens": tokens, "runs": some}
        for key in (
            "before",
            "after",
            "text_alone",
            "closed",
            "similar",
            "parameters",
            "cache",
            "ms",
            "plain",
            "corrected",
        ):
            values = [run[key] for run in some if run.get(key) is not None]
            if values:
                row[key], row[f"{key}_sd"] = mean_sd(values)
        rows.append(row)
    return rows


def notes_of(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return what the sources claim, and in how many runs it was so."""
    mla = {(r["model"], r["seed"], r["arm"], r.get("rank")): r for r in runs if r["part"] == "mla"}
    echo = {(r["seed"], r["arm"]): r for r in runs if r["part"] == "echo"}
    pairs = [(r, mla[m, s, "random", k]) for (m, s, a, k), r in mla.items() if a == "SVD"]
    chains: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for (model, seed, arm, rank), run in mla.items():
        if arm == "SVD":
            chains.setdefault((model, seed), []).append((rank, run["before"]))
    falling = [all(a[1] >= b[1] for a, b in itertools.pairwise(sorted(chain))) for chain in chains.values()]
    seeds = sorted({seed for seed, _ in echo})
    return [
        f"mla, SVD below random: {sum(a['before'] < b['before'] for a, b in pairs)} of {len(pairs)} before, "
        f"{sum(a['after'] < b['after'] for a, b in pairs)} of {len(pairs)} after distillation.",
        f"mla, loss before distillation falls with every larger rank: {sum(falling)} of {len(falling)} models.",
        "echo, most alike below least alike: "
        + ", ".join(
            f"{sum(echo[s, 'most alike'][key] < echo[s, 'least alike'][key] for s in seeds)} of {len(seeds)} {key}"
            for key in ("before", "after")
        )
        + "; below sharing in the first layers: "
        + ", ".join(
            f"{sum(echo[s, 'most alike'][key] < echo[s, 'first layers'][key] for s in seeds)} of {len(seeds)} {key}"
            for key in ("before", "after")
        )
        + ".",
    ]


def main() -> None:
    options = parser(__doc__.splitlines()[0], seeds=2)
    options.add_argument(
        "--part", action="append", choices=("mla", "places", "echo", "latency"), help="only these parts"
    )
    args: argparse.Namespace = options.parse_args()
    start(args)
    budget = QUICK if args.quick else FULL
    folder = data_folder(args, "tinyshakespeare")
    text = Text((folder / "input.txt").read_text(encoding="utf-8"), budget.windows)
    host = Host.load(third_party=False)
    parts, runs = args.part or ["mla", "places", "echo", "latency"], []
    for seed in range(1 if args.quick else args.seeds):
        if "mla" in parts:
            for family in ("gpt2", "llama"):
                with timed(f"mla, {family}, seed {seed}"):
                    runs += run_mla(family, seed, text, host, budget)
        if {"echo", "places"} & set(parts):
            with timed(f"echo, seed {seed}"):
                runs += run_echo(seed, text, host, budget, distilled="echo" in parts)
    if "latency" in parts:
        runs += latencies(text, host, args.quick)
    complete = not args.quick and {"mla", "echo"} <= set(parts)
    finish(
        args,
        summary(runs),
        [
            ("part", "part", ""), ("model", "model", ""), ("arm", "arm", ""), ("rank", "r_kv", "d"),
            ("cache", "cache", ".0f"), ("similar", "similarity", ".3f"), ("parameters", "parameters saved, %", ".1f"),
            ("before", "loss before", ".3f"), ("after", "after KD", ".3f"), ("after_sd", "sd", ".3f"),
            ("closed", "gap closed, %", ".0f"), ("text_alone", "text alone", ".3f"), ("tokens", "tokens", "d"),
            ("ms", "ms", ".2f"), ("plain", "rank correlation", "+.2f"), ("corrected", "of the corrected", "+.2f"),
        ],
        {"notes": notes_of(runs) if complete else [], "window": WINDOW, "steps": budget.steps},
    )  # fmt: skip


if __name__ == "__main__":
    main()
