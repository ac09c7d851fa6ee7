"""What a teacher costs a step on text: distillation with its cached answers against training the student alone.

Student-only is a loop written by hand: forward, cross-entropy, backward, clipping, AdamW, on the very batches of the
engine. One step of it runs after each step of the engine, in the same process. Three arms of the engine: KD on the
logits with cached answers; that and the last layer's relations (`minilmv2`, three maps a head, cached q, k and v); and
KD with the teacher asked every time. Texts are padded to their batch's longest, so steps differ in size; the ratio is
taken pair by pair.

Goal: KD with cached answers costs at most 5 % over the student-only step.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _common import data_folder, finish, mean_sd, parser, say, start
from _text import encoder_folder
from step_overhead import Held
from torch import Tensor, nn

from nasdistill.distill import TeacherCache, fill_cache, train
from nasdistill.files import cache_folder
from nasdistill.host import Host
from nasdistill.interfaces import Batch, Site, StepInfo
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.spec.config import LossConfig, ObjectiveConfig, TrainingConfig

KD = LossConfig(name="kd", weight=0.5, options={"temperature": 2.0})
RELATIONS = LossConfig(name="minilmv2", weight=0.5)
ARMS: dict[str, tuple[tuple[LossConfig, ...], bool]] = {
    "KD, cached": ((KD,), True),
    "KD + relations, cached": ((KD, RELATIONS), True),
    "KD, teacher asked": ((KD,), False),
}


class StudentOnly:
    """The student's own step, written by hand."""

    def __init__(self, student: nn.Module, batches: list[Batch], training: TrainingConfig) -> None:
        self.student, self.batches, self.step = student.train(), batches, 0
        self.parameters = list(student.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=training.lr, fused=True)

    def take(self) -> None:
        """Make one step."""
        batch = self.batches[self.step % len(self.batches)]
        output = self.student(batch.inputs["input_ids"], batch.inputs.get("attention_mask"))
        loss = F.cross_entropy(output, batch.labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        loss.item()
        self.step += 1


def compare(host: Host, task: Any, teacher: Any, arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Train a student of one arm beside the loop by hand and return the ratios of their steps."""
    losses, cached = ARMS[arm]
    space = host.create(Kind.SEARCH_SPACE, "encoder", {"teacher": SIZES})
    arch = space.architecture({name: value for name, value in STUDENT.items()})
    with seeded(seed, "student"):
        student = space.build(arch, task.io)
    training = TrainingConfig(batch_size=32, threads=torch.get_num_threads(), teacher_cache=cached, distinct_epochs=1)
    batches = list(task.batches("train", batch_size=32, epoch=0, seed=seed, train=True))
    held = Held(task, [batches])
    epochs = -(-steps // len(batches))
    hand = StudentOnly(copy.deepcopy(student), batches, training)
    sites = frozenset({Site("logits"), *(Site(name, 5) for name in ("q", "k", "v") if len(losses) > 1)})
    ours: list[float] = []
    theirs: list[float] = []
    last: float | None = None
    clock = time.process_time

    def interleave(info: StepInfo, terms: dict[str, Tensor]) -> None:
        nonlocal last
        begin = clock()
        if last is not None:
            ours.append(begin - last)
        hand.take()
        middle = clock()
        if last is not None:
            theirs.append(middle - begin)
        last = clock()

    with tempfile.TemporaryDirectory() as folder:
        cache = TeacherCache(Path(folder)) if cached else None
        if cache is not None:
            fill_cache(cache, held, teacher, sites, training, epochs=1, data_seed=seed)
        train(
            student, held, teacher, ObjectiveConfig(task_weight=0.5, losses=losses), training, epochs=epochs,
            steps=steps, seed=seed, data_seed=seed, host=host, cache=cache, on_step=interleave,
        )  # fmt: skip
    skip = len(ours) // 10  # first steps allocate memory
    ratios = [a / b for a, b in zip(ours[skip:], theirs[skip:], strict=True)]
    return {
        "student_ms": 1e3 * statistics.median(theirs[skip:]),
        "engine_ms": 1e3 * statistics.median(ours[skip:]),
        "overhead": 100 * (statistics.median(ratios) - 1),
        "steps": len(ratios),
    }


SIZES = {"layers": 6, "hidden": 384, "heads": 12, "mlp": 1536, "positions": 512, "token_types": 2}
STUDENT = {"layers": 6, "heads": 12, "hidden": 320, "mlp_ratio": 3.0}
"""The upper end of the space for a 6 x 384 teacher."""


def main() -> None:
    """Run."""
    args = parser(__doc__.splitlines()[0], seeds=2).parse_args()
    start(args)
    host = Host.load(third_party=False)
    source = data_folder(args, "sst2")
    with tempfile.TemporaryDirectory(prefix="nasdistill-step-") as folder:
        lines = (source / "train.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
        path = Path(folder) / "train.tsv"
        path.write_text("".join(lines[: 320 if args.quick else 1280]), encoding="utf-8")
        options = {"data": str(path), "tokenizer": str(encoder_folder()), "max_length": 64}
        task = host.create(Kind.TASK, "text_classification", options)
        task.prepare(cache_folder())
        import transformers

        from nasdistill.bridge.transformers import TokenModel, quiet
        from nasdistill.interfaces.teacher import SingleTeacher

        with quiet(), seeded(0, "head"):  # its answers' cost matters, not their quality
            stock = transformers.AutoModelForSequenceClassification.from_pretrained(str(encoder_folder()))
        teacher = SingleTeacher(TokenModel(stock, "classes"), label="MiniLM", fingerprint="text_step")
        rows = []
        for arm in ARMS:
            found = []
            for seed in range(1 if args.quick else args.seeds):
                found.append(compare(host, task, teacher, arm, seed, 12 if args.quick else 80))
                say(f"{arm}, seed {seed}: {found[-1]['overhead']:+.1f} %")
            mean, sd = mean_sd([run["overhead"] for run in found])
            row = {"arm": arm, "overhead": mean, "sd": sd, "steps": sum(run["steps"] for run in found), "runs": found}
            row |= {key: mean_sd([run[key] for run in found])[0] for key in ("student_ms", "engine_ms")}
            rows.append(row)
    columns = [
        ("arm", "arm", ""), ("student_ms", "student alone, ms", ".1f"), ("engine_ms", "engine, ms", ".1f"),
        ("overhead", "overhead, %", "+.1f"), ("sd", "sd", ".1f"), ("steps", "pairs", "d"),
    ]  # fmt: skip
    finish(args, rows, columns, {"goal": "KD with cached answers within 5 %", "clock": "process time"})


if __name__ == "__main__":
    main()
