"""The configuration of a run: TOML in, validated data out; every unknown key is an error with close matches."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from nasdistill.errors import ConfigError, did_you_mean
from nasdistill.spec.options import explain


class Table(BaseModel):
    """Base of every table of the configuration: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class ComponentConfig(Table):
    """A component by name, with its options."""

    name: str = Field(min_length=1, description="Name (`synflow`) or canonical id (`proxies:synflow`).")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the component.")


class TaskConfig(ComponentConfig):
    """What the models do, on which data."""

    name: str = Field("image_classification", description="Task component.")


class TeacherConfig(ComponentConfig):
    """Who teaches."""

    name: str = Field("builtin:digits", description="`NAME:LOCATOR`, such as `timm:resnet18` or `builtin:digits`.")


class Schedule(Table):
    """A weight that changes over a training: from `start` to `end` between two shares of it."""

    start: float = Field(description="Weight until `begin`.")
    end: float = Field(description="Weight from `finish` on.")
    begin: float = Field(0.0, ge=0, le=1, description="Share of the training at which the change begins.")
    finish: float = Field(1.0, ge=0, le=1, description="Share of the training at which the change is over.")
    shape: Literal["linear", "cosine", "step"] = Field("linear", description="How the weight moves in between.")

    def at(self, progress: float) -> float:
        """Return the weight at a share of the training in [0, 1]."""
        import math

        if progress <= self.begin:
            return self.start
        if progress >= self.finish:
            return self.end
        share = (progress - self.begin) / (self.finish - self.begin)
        if self.shape == "step":
            return self.start
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start + (self.end - self.start) * share


class LossConfig(ComponentConfig):
    """One term of the objective."""

    weight: float | Schedule = Field(1.0, description="Factor, or a schedule table.")
    optional: bool = Field(False, description="Leave it out, and record that, for a student that it does not fit.")


class ObjectiveConfig(Table):
    """What a student is trained on: weighted distillation losses plus the task's own loss on labels."""

    task_weight: float | Schedule = Field(0.5, description="Factor of the task's own loss on labels.")
    losses: tuple[LossConfig, ...] = Field((LossConfig(name="kd"),), description="Distillation losses.")
    balance: Literal["none", "magnitude", "gradient", "dynamic"] = Field(
        "none",
        description="How terms are brought to one scale: not at all, by dividing each by its own detached value, "
        "by the norm of its gradient at the output, or (`dynamic`) by bringing each to the value of the first one: the "
        "loss on labels, or where its weight is 0 the first loss of the list.",
    )


class TrainingConfig(Table):
    """How a student is trained."""

    batch_size: int = Field(64, ge=1, description="Samples per step.")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="Optimiser.")
    lr: float = Field(2e-3, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.02, ge=0, description="Decay of matrices and kernels (not of biases and norms).")
    momentum: float = Field(0.9, ge=0, lt=1, description="For SGD (with Nesterov).")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Learning rate after warm-up.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps with a rising learning rate.")
    grad_clip: float | None = Field(1.0, gt=0, description="Largest gradient norm.")
    accumulate: int = Field(1, ge=1, description="Batches per optimiser step.")
    ema: float | None = Field(None, gt=0, lt=1, description="Decay of the averaged weights that are evaluated.")
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="Mixed precision.")
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`.")
    threads: int = Field(1, ge=1, description="CPU threads of a training process.")
    distinct_epochs: int | None = Field(
        16, ge=1, description="Order and augmentation repeat after so many epochs; bounds the teacher's work."
    )
    mixup: float = Field(0.0, ge=0, description="Mix images of a batch, shares from Beta(mixup, mixup); 0 = not.")
    token_noise: float = Field(0.0, ge=0, lt=1, description="Share of tokens exchanged for random ones.")
    teacher_cache: bool = Field(True, description="Compute the teacher's outputs once for all students.")
    inherit: bool = Field(True, description="Start students from the teacher's weights where the space can.")
    checkpoint_seconds: float = Field(
        30.0, ge=0, description="A training writes a checkpoint at the end of an epoch when the last is this old."
    )


class WorkersConfig(Table):
    """Processes that work on candidates, so that one that crashes, hangs or leaks costs its trial only."""

    count: int = Field(0, ge=0, description="Worker processes; 0 works in the search's own process, unprotected.")
    timeout: float = Field(3600.0, gt=0, description="Seconds after which a worker's rung of a trial counts as hung.")
    memory_gb: float | None = Field(
        None, gt=0, description="GiB that a worker may use; unset = an equal share of 80 % of the machine's."
    )


class ConstraintsConfig(Table):
    """What a student must not exceed."""

    max_latency_ms: float | None = Field(None, gt=0, description="On the first target (upper end of the interval).")
    max_params: int | None = Field(None, gt=0, description="Parameters.")
    max_macs: int | None = Field(None, gt=0, description="Multiply-accumulates of one forward.")


class LatencyConfig(Table):
    """How latency is measured."""

    max_seconds: float = Field(1.5, gt=0, description="Time limit of one measurement.")
    min_pairs: int = Field(20, ge=3, description="Interleaved rounds at least.")
    max_pairs: int = Field(100, ge=3, description="Interleaved rounds at most.")
    final_pairs: int = Field(200, ge=3, description="Rounds of the final head-to-head of the front with the teacher.")
    relative_width: float = Field(0.05, gt=0, description="Stop when the interval's half width is below this share.")


class SearchConfig(Table):
    """How the budget is spent."""

    strategy: str = Field("funnel", description="Strategy component.")
    strategy_options: dict[str, Any] = Field(default_factory=dict, description="Options of the strategy.")
    sampler: str = Field("tpe", description="Sampler component.")
    sampler_options: dict[str, Any] = Field(default_factory=dict, description="Options of the sampler.")
    trials: int = Field(32, ge=1, description="Architectures to propose.")
    timeout: float | None = Field(None, gt=0, description="Seconds after which nothing new is proposed.")
    seed: int = Field(0, ge=0, description="Root of all randomness.")
    baselines: Literal["none", "measured", "distilled"] = Field(
        "measured",
        description="What to compare the front with: nothing, the teacher cut to its first blocks as it is, or one of "
        "these distilled too.",
    )


class PluginsConfig(Table):
    """Which plugins load."""

    disable: tuple[str, ...] = Field((), description="Plugins that are not loaded.")


class RunConfig(Table):
    """A whole run."""

    schema_version: Literal[1] = Field(1, description="Version of this file format.")
    task: TaskConfig = Field(default_factory=TaskConfig)
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)
    space: tuple[ComponentConfig, ...] = Field(
        (ComponentConfig(name="conv_vit"), ComponentConfig(name="resnet_s0")), description="Search spaces, one or more."
    )
    target: tuple[ComponentConfig, ...] = Field(
        (ComponentConfig(name="onnxruntime_cpu"), ComponentConfig(name="torch_cpu")),
        description="Targets; the first one's latency is the second objective.",
    )
    proxy: tuple[ComponentConfig, ...] = Field(
        (ComponentConfig(name="params"), ComponentConfig(name="macs"), ComponentConfig(name="nwot")),
        description="Proxies to score candidates with.",
    )
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)
    constraints: ConstraintsConfig = Field(default_factory=ConstraintsConfig)
    latency: LatencyConfig = Field(default_factory=LatencyConfig)
    workers: WorkersConfig = Field(default_factory=WorkersConfig)
    plugins: PluginsConfig = Field(default_factory=PluginsConfig)
    recipe: ComponentConfig | None = Field(
        None, description="Recipe that `nasdistill distill` follows, instead of one training on `objective`."
    )

    @field_validator("space", "target")
    @classmethod
    def _not_empty(cls, value: tuple[ComponentConfig, ...]) -> tuple[ComponentConfig, ...]:
        if not value:
            raise ValueError("at least one is needed")
        names = [item.name for item in value]
        if len(set(names)) != len(names):
            raise ValueError("the same name twice")
        return value

    def to_json(self) -> dict[str, Any]:
        """Return the complete configuration, defaults included."""
        return self.model_dump(mode="json")


def parse_config(values: Any, *, where: str) -> RunConfig:
    """Validate parsed TOML or JSON.

    Args:
        values: the parsed file.
        where: file name for messages.

    Raises:
        ConfigError: one line per problem, naming key and file; unknown keys come with close matches.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected tables of keys and values, got {type(values).__name__}")
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            f"{where}: {explain(error, RunConfig)}", hint="nasdistill config schema prints every key with its bounds."
        ) from None


def load_config(path: Path) -> RunConfig:
    """Read a TOML file.

    Raises:
        ConfigError: unreadable, not TOML, or invalid.
    """
    return parse_config(read_toml(path), where=str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file's content.

    Raises:
        ConfigError: unreadable or not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"cannot read configuration {path}: there is no such file",
            hint="nasdistill config init --out FILE writes one to start from.",
        ) from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"cannot read configuration {path}: {error}") from None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def preset_names() -> list[str]:
    """Return the names of the bundled presets."""
    folder = resources.files("nasdistill.spec").joinpath("presets")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def preset_text(name: str) -> str:
    """Return a preset's commented TOML text.

    Raises:
        ConfigError: no such preset; close matches are named.
    """
    if name not in preset_names():
        raise ConfigError(f"no preset named {name!r}. {did_you_mean(name, preset_names())}")
    return resources.files("nasdistill.spec").joinpath("presets", f"{name}.toml").read_text(encoding="utf-8")


def load_preset(name: str) -> RunConfig:
    """Return a bundled preset."""
    return parse_config(tomllib.loads(preset_text(name)), where=f"preset {name}")
