"""Any encoder, decoder or image classifier of transformers: ``hf:PATH_OR_NAME``.

``hf:./my-bert`` opens a folder that ``save_pretrained`` wrote, ``hf:org/name`` what an earlier download left on this
machine, and only ``hf:hub:org/name`` downloads. The head follows the task: a sequence or image classifier, a sentence
embedding (the mean over the last hidden states of real tokens), a masked or a causal language model.

Nothing is adapted in silence. A checkpoint that lacks tensors or has others than its configuration says, a tokenizer
that gives other ids, classes in another order, texts longer than the model takes, padding on the wrong side and answers
that are no numbers are each refused in one message before anything is trained. Weights are read as single precision
unless the option says otherwise, from safetensors only; no code that lies beside them is run.

A sentence-transformers folder's pooling is respected (mean and first token; others are refused). Its final scaling to
length 1 is left out unless `normalize` is set: students end in the mean, and cosines are the same.

Source: "Transformers: State-of-the-Art Natural Language Processing", arXiv 1910.03771.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from nasdistill.bridge.describing import describe, sentence_modules
from nasdistill.bridge.hub import model_folder
from nasdistill.bridge.pairing import check_answers, check_pair, compare_pixels
from nasdistill.bridge.random_models import save_random_model
from nasdistill.bridge.transformers import Pooling, answer_hash, load_model, read_config
from nasdistill.errors import MismatchError, UsageError
from nasdistill.interfaces.base import Example
from nasdistill.interfaces.info import TeacherInfo
from nasdistill.interfaces.task import Task
from nasdistill.interfaces.teacher import SingleTeacher, Teacher, TeacherSession
from nasdistill.spec.options import ComponentOptions


class HfOptions(ComponentOptions):
    """Options of `hf`."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Precision of the weights.")
    pooling: Pooling | None = Field(
        None, description="How token vectors become an embedding; by default as its folder says, else the mean."
    )
    normalize: bool = Field(False, description="Scale embeddings to length 1.")
    revision: str | None = Field(None, description="Branch, tag or commit of a hub name.")


class HfTeacher(Teacher):
    """See the module's text."""

    examples: ClassVar[tuple[Example, ...]] = (
        Example(
            {},
            {
                "locator": lambda folder: save_random_model(folder / "vit", "vit", seed=0),
                "other_locator": lambda folder: save_random_model(folder / "other", "vit", seed=1),
            },
            name="image classifier",
        ),
        Example(
            {},
            {
                "locator": lambda folder: save_random_model(
                    folder / "bert", "bert", "classes", vocab_size=128, max_position_embeddings=128, num_labels=2
                ),
                "task": "tasks:text_classification",
                "other_options": {"dtype": "bfloat16"},
            },
            name="encoder",
        ),
        Example(
            {},
            {
                "locator": lambda folder: save_random_model(
                    folder / "llama", "llama", "causal_lm", vocab_size=128, max_position_embeddings=32
                ),
                "task": "tasks:causal_lm",
                "task_options": {"vocabulary": 128, "max_length": 32},
                "other_options": {"dtype": "bfloat16"},
            },
            name="decoder",
        ),
    )
    options_model = HfOptions
    options: HfOptions

    def describe(self, locator: str) -> TeacherInfo:
        """Return its sizes, tokenizer, longest input, labels and preprocessing; see :class:`Teacher`."""
        return describe(_given(locator), revision=self.options.revision, label=f"hf:{locator}")

    def open(
        self,
        locator: str,
        task: Task,
        *,
        cache_dir: Path,
        device: str = "cpu",
        progress: Callable[[str], None] | None = None,
    ) -> TeacherSession:
        """Compare model and task, load the model and look at its answers; see :class:`Teacher`."""
        say = progress or (lambda line: None)
        label, options, io = f"hf:{_given(locator)}", self.options, task.io
        folder = model_folder(locator, revision=options.revision, label=label)
        config = read_config(folder, label=label)
        info = describe(locator, revision=options.revision, label=label)
        check_pair(config, task, folder, label, say, made_for=info.max_length)
        compare_pixels(info.preprocessing, task, label, say)
        if io.kind != "tokens" and io.kind != "image":  # check_pair has refused all others
            raise MismatchError(f"{label} takes texts or images, but the task is {io}")
        model = load_model(
            locator,
            io.head,
            kind=io.kind,
            dtype=options.dtype,
            pooling=self._pooling(folder, label, say) if io.head == "embedding" else "mean",
            normalize=options.normalize,
            revision=options.revision,
            label=label,
            say=say,
        )
        check_answers(model, task, label, say)
        fingerprint = answer_hash(model)
        return SingleTeacher(model.to(device), label=label, fingerprint=fingerprint)

    def _pooling(self, folder: Path, label: str, say: Callable[[str], None]) -> Pooling:
        """Return how embeddings are pooled, and say what is left out."""
        if self.options.pooling is not None:
            return self.options.pooling
        modules = sentence_modules(folder, label=label)
        if modules is None:
            return "mean"
        if modules.normalize and not self.options.normalize:
            say(f"note: {label} scales its embeddings to length 1; students do not, and cosines are the same")
        return modules.pooling


def _given(locator: str) -> str:
    """Return a locator that says something."""
    if not locator.removeprefix("hub:"):
        raise UsageError("hf needs a folder or the name of a model", hint="Write hf:PATH, such as hf:./my-bert.")
    return locator
