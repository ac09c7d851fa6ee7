"""`prune_distill` and `teacher_assistant` on small networks, and by the command that runs recipes."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys_search import write_digits

import nasdistill
from nasdistill.bridge.random_models import random_model
from nasdistill.cli.app import run as main
from nasdistill.distill import StageRunner, evaluate, train
from nasdistill.errors import ArchitectureError, ConfigError, MismatchError, TrialFailure, UsageError
from nasdistill.interfaces import Evaluation, SingleTeacher, StageResult
from nasdistill.interfaces.recipe import TEACHER, Origin
from nasdistill.library.training import Distillation, distill_architecture
from nasdistill.seeds import seeded
from nasdistill.spec.component import Kind
from nasdistill.spec.config import TrainingConfig, parse_config
from nasdistill.spec.io import IOSpec
from nasdistill.testing.kit.space import TinySpace

IO = IOSpec("image", (1, 8, 8), 10)


class Judged:
    """A runner that trains nothing and gives each point the loss that a table says."""

    def __init__(self, space, params, losses=lambda params: 1.0, fails=(), teacher=None, io=IO):
        self.origin = Origin(space, space.architecture(params), io)
        self.taught_by = teacher
        self.notes, self.spaces = [], []
        self.losses, self.fails = losses, fails
        self.stages, self.sources, self.registered = [], [], {}
        self.points = {}

    def made(self, architecture, space=None):
        with seeded(0, architecture.fingerprint):
            model = (space or self.origin.space).build(architecture, self.origin.io)
        self.points[model] = architecture
        return model

    def candidate(self, architecture, source=None, *, space=None):
        self.sources.append(None if source is None else self.points[source])
        self.spaces.append(space)
        return self.made(architecture, space)

    def teacher(self, reference):
        assert reference == TEACHER
        model = self.made(self.origin.space.default()) if self.taught_by is None else self.taught_by
        return SingleTeacher(model, label=TEACHER, fingerprint=TEACHER)

    def note(self, text):
        self.notes.append(text)

    def train(self, stage, student):
        self.stages.append((stage, self.points[student]))
        if stage.name in self.fails:
            raise TrialFailure("nan_loss", "not a number")
        loss = self.losses(dict(self.points[student].params))
        return StageResult(student, Evaluation(0.0, loss, 1))

    def register_teacher(self, name, session):
        self.registered[name] = session


def recipe(host, name, **options):
    return host.create(Kind.RECIPE, name, options)


def run(host, judged, name="prune_distill", **options):
    student = judged.made(judged.origin.architecture)
    found = recipe(host, name, **options).run(student, judged)
    return student, found


# ---- prune_distill ---------------------------------------------------------------------------------------------------


@pytest.mark.paper("2407.14679", "recipes:prune_distill")
def test_candidates_have_the_size_and_the_lowest_loss_wins(host):
    space = TinySpace()
    judged = Judged(space, {"width": 4}, losses=lambda params: 0.5 if params["activation"] == "gelu" else 2.0)
    _, found = run(host, judged, tolerance=0.3, candidates=5, short_epochs=0.5, epochs=7)
    target = space.cost(judged.origin.architecture, IO).params
    *tried, (last, chosen) = judged.stages
    assert 2 < len(tried) <= 5
    assert tried[0][1] == judged.origin.architecture
    assert len({point for _, point in tried}) == len(tried)
    assert all(abs(space.cost(point, IO).params - target) <= 0.3 * target for _, point in tried)
    away = [abs(space.cost(point, IO).params - target) for _, point in tried[1:]]
    left = [space.cost(p, IO).params for p in space.enumerate() if p not in {point for _, point in tried}]
    assert away == sorted(away)
    assert min(abs(count - target) for count in left) >= max(away)
    assert [stage.epochs for stage, _ in tried] == [0.5] * len(tried)
    assert (last.epochs, last.losses, last.teacher) == (7, {"logit_kl": 1.0}, TEACHER)
    assert chosen.params["activation"] == "gelu"
    assert judged.points[found] == chosen
    assert judged.sources == [None] * (len(tried) - 1)  # all from the teacher, but the student, which was there


@pytest.mark.paper("2407.14679", "recipes:prune_distill")
def test_sizes_between_are_cut_from_one_another_and_taught_by_the_first_teacher(host):
    space = TinySpace()
    judged = Judged(space, {"width": 4, "depth": 1}, losses=lambda params: -params["width"])
    run(host, judged, through=[3.0], tolerance=0.4, candidates=4)
    longs = [(stage, point) for stage, point in judged.stages if "try" not in stage.name]
    assert [stage.name for stage, _ in longs] == ["size_0", "size_1"]
    assert {stage.teacher for stage, _ in judged.stages} == {TEACHER}
    between, last = (point for _, point in longs)
    sizes = [space.cost(point, IO).params for point in (between, last, judged.origin.architecture)]
    assert sizes[0] > 2 * sizes[1]
    assert abs(sizes[1] - sizes[2]) <= 0.4 * sizes[2]
    cut = [point for stage, point in judged.stages if stage.name.startswith("size_1")]
    assert all(point.params[name] <= between.params[name] for point in cut for name in ("width", "ratio", "depth"))
    count = sum(stage.name.startswith("size_1_try") for stage, _ in judged.stages)
    assert judged.sources[-count:] == [between] * count


def test_a_candidate_that_cannot_be_trained_is_left_out(host):
    judged = Judged(TinySpace(), {"width": 4}, fails=("size_0_try_0", "size_0_try_2"))
    run(host, judged, tolerance=0.3, candidates=4)
    assert judged.stages[-1][1] == judged.stages[1][1]
    nothing = Judged(TinySpace(), {"width": 4}, fails=[f"size_0_try_{i}" for i in range(9)])
    with pytest.raises(TrialFailure):
        run(host, nothing, tolerance=0.3)


def test_large_spaces_are_drawn_from(host, monkeypatch):
    import nasdistill_recipes.prune_distill as module

    monkeypatch.setattr(module, "MANY", 40)
    judged = Judged(TinySpace(), {"width": 4})
    first, again = (
        recipe(host, "prune_distill", tolerance=0.5, seed=s).choose(judged.origin, 400, None) for s in (1, 1)
    )
    assert first == again
    assert judged.origin.architecture in first or len(first) >= 1


def test_recipes_need_a_point_of_a_space(host):
    for name in ("prune_distill", "teacher_assistant"):
        judged = Judged(TinySpace(), {})
        judged.origin, student = None, judged.made(TinySpace().default())
        with pytest.raises(UsageError, match=f"recipe recipes:{name} looks for other networks"):
            recipe(host, name).run(student, judged)
    with pytest.raises(ConfigError, match="must fall"):
        recipe(host, "prune_distill", through=[2.0, 3.0])


# ---- teacher_assistant -----------------------------------------------------------------------------------------------

WIDE = {"width": [4, 8, 16], "depth": [1, 2, 4]}


@pytest.mark.paper("2002.10957", "recipes:teacher_assistant")
@pytest.mark.parametrize(
    ("params", "helped"),
    [
        ({"width": 8, "depth": 2}, True),
        ({"width": 4, "depth": 1}, True),
        ({"width": 16, "depth": 2}, False),
        ({"width": 8, "depth": 4}, False),
    ],
)
def test_an_assistant_where_depth_and_width_are_at_most_half(host, params, helped):
    judged = Judged(TinySpace(WIDE), params)
    student, found = run(host, judged, "teacher_assistant", epochs=3, assistant_epochs=5)
    assert found is student
    names = [(stage.name, stage.teacher, stage.epochs) for stage, _ in judged.stages]
    if not helped:
        assert names == [("student", TEACHER, 3)]
        return
    assert names == [("assistant", TEACHER, 5), ("student", "assistant", 3)]
    (_, assistant), _ = judged.stages
    assert dict(assistant.params) == {
        **judged.origin.architecture.params, "depth": 4, **{f"block{i}.kernel": 3 for i in range(4)},
    }  # fmt: skip
    session = judged.registered["assistant"]
    assert judged.points[session.model] == assistant
    assert len({json.dumps(stage.losses) for stage, _ in judged.stages}) == 1
    assert not any(parameter.requires_grad for parameter in session.model.parameters())


def test_when_decides_and_axes_can_be_named(host):
    small = {"width": 8, "depth": 4}
    for when, count in (("always", 2), ("never", 1)):
        judged = Judged(TinySpace(WIDE), {**small, "depth": 2, "width": 16})
        run(host, judged, "teacher_assistant", when=when)
        assert len(judged.stages) == count
    with pytest.raises(UsageError, match="no axis heads of numbers"):
        run(host, Judged(TinySpace(WIDE), small), "teacher_assistant", width="heads")
    with pytest.raises(UsageError, match="no axis activation"):
        run(host, Judged(TinySpace(WIDE), small), "teacher_assistant", depth="activation")


TWELVE = {"layers": 12, "hidden": 48, "heads": 4, "mlp": 192, "positions": 40}
WORDS = IOSpec("tokens", (6,), 3, 50)


@pytest.fixture(scope="module")
def bert():
    return random_model(
        "bert", "classes", hidden_size=48, num_hidden_layers=12, num_attention_heads=4, intermediate_size=192,
        max_position_embeddings=40, num_labels=3, vocab_size=50,
    )  # fmt: skip


@pytest.mark.paper("2002.10957", "recipes:teacher_assistant")
@pytest.mark.parametrize(
    ("name", "options", "params", "taken"),
    [
        # The largest width here is 5/6 of the teacher's, in `tiny` 7/24, and 7/12 of its depth.
        ("encoder", {}, {"layers": 5, "hidden": 22}, {"layers": 12, "hidden": 22}),
        ("encoder", {"subspace": "tiny"}, {"layers": 4, "hidden": 8}, {"layers": 12, "hidden": 8}),
        ("encoder", {"subspace": "tiny"}, {"layers": 7, "hidden": 8}, None),
        ("encoder", {"layers": [6], "hidden": [20, 40]}, {"hidden": 40}, None),
        ("bert_free", {"layers": [3]}, {"hidden": 12, "layer01.heads": 1}, {"layers": 12, "hidden": 12}),
    ],
)
def test_depth_and_width_to_halve_are_the_teachers(host, bert, name, options, params, taken):
    space = host.create(Kind.SEARCH_SPACE, name, {"teacher": TWELVE, **options})
    judged = Judged(space, params, teacher=bert, io=WORDS)
    run(host, judged, "teacher_assistant")
    [note] = judged.notes
    assert "the teacher has 12 layers of width 48, the student" in note
    if taken is None:
        assert [stage.name for stage, _ in judged.stages] == ["student"]
        assert note.startswith("no assistant: ")
        return
    (_, assistant), (_, student) = judged.stages
    assert {key: assistant.params[key] for key in taken} == taken
    assert note.startswith(f"assistant of 12 layers of width {taken['hidden']}: ")
    each = [key for key in assistant.params if key.startswith("layer") and "." in key]
    assert len(each) == (36 if name == "bert_free" else 0)
    assert [assistant.params[key] for key in each] == [
        student.params[f"layer{int(key[5:7]) // 4:02d}{key[7:]}"] for key in each
    ]
    model = judged.registered["assistant"].model
    assert (len(model.encoder.layer), model.shape.hidden) == (12, taken["hidden"])


def test_the_nearest_depth_is_taken_where_the_space_stops_short(host, bert):
    eight = {**TWELVE, "layers": 8}
    space = host.create(Kind.SEARCH_SPACE, "encoder", {"teacher": eight, "layers": [2, 6], "hidden": [24]})
    judged = Judged(space, {"layers": 2}, teacher=bert, io=WORDS)
    run(host, judged, "teacher_assistant")
    assert judged.stages[0][1].params["layers"] == 6
    assert judged.notes[0].startswith("assistant of 6 layers of width 24, the nearest that the space has: the teacher")
    shallow = host.create(Kind.SEARCH_SPACE, "encoder", {"teacher": eight, "layers": [2], "hidden": [24]})
    judged = Judged(shallow, {}, teacher=bert, io=WORDS)
    run(host, judged, "teacher_assistant")
    assert [stage.name for stage, _ in judged.stages] == ["student"]
    assert "has no deeper network like it" in judged.notes[0]


# ---- the runner ------------------------------------------------------------------------------------------------------


def test_a_candidate_of_a_wider_space_inherits_and_is_no_student(host, bert):
    def space(**options):
        return host.create(Kind.SEARCH_SPACE, "encoder", {"teacher": TWELVE, "subspace": "tiny", **options})

    origin = Origin(space(), space().architecture({"layers": 4, "hidden": 8}), WORDS)
    said = []
    runner = StageRunner(
        None, host=host, training=TrainingConfig(), seed=3, cache_dir=None, origin=origin, progress=said.append
    )
    runner.register_teacher(TEACHER, SingleTeacher(copy.deepcopy(bert), label="t", fingerprint="t"))
    deep = space(layers=[12])
    point = deep.architecture({"hidden": 8})
    with pytest.raises(ArchitectureError):
        runner.candidate(point)
    model = runner.candidate(point, space=deep)
    assert len(model.encoder.layer) == 12
    words = bert.get_input_embeddings().weight
    assert torch.equal(model.embeddings.word_embeddings.weight, words[:, :8])
    assert runner.architecture_of(model) is None  # its own space's options would not build it
    runner.note("so it goes")
    assert said == ["so it goes"]
    assert runner.record[-1] == {"kind": "note", "name": "so it goes"}


def test_candidates_of_the_runner_start_from_the_teacher(host):
    space = TinySpace()
    arch, small = space.default(), space.architecture({"width": 4})
    with seeded(7, "teacher"):
        teacher = space.build(arch, IO)

    def runner(inherit=True):
        made = StageRunner(
            None, host=host, training=TrainingConfig(inherit=inherit), seed=3, cache_dir=None,
            origin=Origin(space, arch, IO),
        )  # fmt: skip
        made.register_teacher(TEACHER, SingleTeacher(copy.deepcopy(teacher), label="t", fingerprint="t"))
        return made

    one, two, fresh = runner(), runner(), runner(inherit=False)
    two.candidate(arch)
    models = [each.candidate(small) for each in (one, two, fresh)]
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    assert torch.equal(models[0].stem.weight, teacher.stem.weight[:4])
    assert not torch.equal(models[2].stem.weight, teacher.stem.weight[:4])
    assert one.architecture_of(models[0]) == small
    assert one.architecture_of(models[1]) is None
    assert one.record[0]["kind"] == "candidate"
    assert one.record[0]["params"] == sum(parameter.numel() for parameter in models[0].parameters())
    with pytest.raises(ArchitectureError):
        one.candidate(TinySpace(WIDE).architecture({"width": 16}))
    plain = StageRunner(None, host=host, training=TrainingConfig(), seed=3, cache_dir=None)
    with pytest.raises(UsageError, match="no point of a search space"):
        plain.candidate(small)


# ---- the command -----------------------------------------------------------------------------------------------------

SPACE = {"width": [16, 32], "depth": [1, 2], "heads": [1], "mlp_ratio": [1, 2], "attention": ["softmax"],
         "stem_width": [8], "reduction": [0]}  # fmt: skip


@pytest.fixture
def request_of(host, tmp_path_factory, monkeypatch):
    base = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("NASDISTILL_CACHE", str(base / "recipe-cache"))
    data = base / "recipe-digits.npz"
    if not data.exists():
        write_digits(data, 120)
    point = host.create(Kind.SEARCH_SPACE, "conv_vit", SPACE).architecture({"width": 16, "depth": 1})

    def made(name, **options):
        config = {
            "task": {"options": {"data": str(data)}},
            "teacher": {"name": "timm:test_resnet"},
            "space": [{"name": "conv_vit", "options": SPACE}],
            "training": {"batch_size": 40, "checkpoint_seconds": 0.0},
            "recipe": {"name": name, "options": options},
        }
        return Distillation(point, parse_config(config, where="test"), 0, seed=3)

    return made


def test_a_recipe_that_was_stopped_ends_with_the_same_student(host, request_of, tmp_path):
    request = request_of("prune_distill", candidates=2, tolerance=0.9, short_epochs=1, epochs=2)
    whole = distill_architecture(request, tmp_path / "whole", host=host)
    record = whole["recipe"]["record"]
    stages = [entry for entry in record if entry["kind"] == "stage"]
    assert [entry["name"] for entry in stages] == ["size_0_try_0", "size_0_try_1", "size_0"]
    best = min(stages[:2], key=lambda entry: entry["loss"])
    student = nasdistill.load_student(tmp_path / "whole")
    if best["name"] == "size_0_try_1":
        assert student.architecture.id == next(entry["name"] for entry in record if entry["kind"] == "candidate")
    else:
        assert student.architecture == request.architecture
    assert student.architecture.to_json() == whole["architecture"]
    assert sum(parameter.numel() for parameter in student.model().parameters()) == whole["params"]
    assert student.score == whole["validation"]["score"]

    class Cut(Exception):
        pass

    def cut(line):
        if line.startswith("stage size_0:"):
            raise Cut

    with pytest.raises(Cut):
        distill_architecture(request, tmp_path / "torn", host=host, message=cut)
    assert (tmp_path / "torn" / "stages" / "size_0_try_1.safetensors").is_file()
    again = distill_architecture(request, tmp_path / "torn", host=host)
    assert (again["validation"], again["recipe"], again["steps"]) == (
        whole["validation"], whole["recipe"], whole["steps"],
    )  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "torn").iterdir()) == [
        "architecture.json", "distill.json", "model.safetensors", "provenance.json", "result.json",
    ]  # fmt: skip
    other = request_of("prune_distill", candidates=2, tolerance=0.9, short_epochs=1, epochs=3)
    with pytest.raises(UsageError, match=r"recipe\.options\.epochs was 2, is 3"):
        distill_architecture(other, tmp_path / "torn", host=host)


def test_the_command_runs_a_recipe(request_of, tmp_path, capsys):
    request = request_of("teacher_assistant")
    arch = tmp_path / "arch.json"
    arch.write_text(json.dumps({**request.architecture.to_json(), "space_options": SPACE}))
    data = request.config.task.options["data"]
    common = ["distill", str(arch), "--teacher", "timm:test_resnet", "--data", data, "--out", str(tmp_path / "out")]
    short = ["--set", "recipe.options.epochs=1", "--set", "recipe.options.assistant_epochs=0.5"]
    losses = ["--set", "recipe.options.losses={kd = 1.0}"]
    assert main([*common, "--recipe", "teacher_assistant", *short, *losses, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in result["recipe"]["record"] if entry["kind"] == "stage"] == [
        "assistant",
        "student",
    ]
    assert result["architecture"] == request.architecture.to_json()
    for arguments, words in (
        (["--recipe", "teacher_assistant", "--epochs", "2"], "has epochs and losses of its own"),
        ([], "--epochs N"),
        (["--recipe", "teacher_assistent"], "teacher_assistant"),
    ):
        assert main([*common[:-1], str(tmp_path / "other"), *arguments]) != 0
        assert words in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


# ---- recipes whose networks were converted ---------------------------------------------------------------------------

CONVERTED = {
    "ecomla": ({"convert": {"kv_rank": 6}, "epochs": 1.0}, "transforms:mla_upcycle"),
    "echoatt_two_stage": ({"share": {"first": 0, "last": 0}, "losses": {"kd": 1.0}, "epochs": 1.0,
                           "adjust_epochs": 0.5}, "transforms:echoatt"),
}  # fmt: skip
FRESH = """
import sys
import torch
from safetensors.torch import save_file
import nasdistill

torch.set_num_threads(1)
images = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)
for folder in sys.argv[1:]:
    with torch.no_grad():
        save_file({"answer": nasdistill.load_student(folder).model()(images)}, f"{folder}.answer")
"""


def test_converted_students_are_saved_and_built_again_in_a_fresh_process(host, request_of, tmp_path):
    images = torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)
    folders, expected = [], {}
    deep = host.create(Kind.SEARCH_SPACE, "conv_vit", SPACE).architecture({"width": 16, "depth": 2})
    for name, (options, transform) in CONVERTED.items():
        request = request_of(name, **options)
        request.architecture = deep
        result = distill_architecture(request, tmp_path / name, host=host)
        student = nasdistill.load_student(tmp_path / name, host=host)
        model = student.model()
        assert student.architecture == deep
        assert [step.name for step in student.transforms] == [transform]
        assert result["params"] == student.params == sum(parameter.numel() for parameter in model.parameters())
        plain = host.create(Kind.SEARCH_SPACE, "conv_vit", SPACE).build(deep, IO)
        assert set(model.state_dict()) != set(plain.state_dict())
        assert set(nasdistill.build(tmp_path / name, host=host).state_dict()) == set(model.state_dict())
        with torch.no_grad():
            expected[name] = model(images)
        assert evaluate(model, prepared(request, host)).score == result["validation"]["score"]
        student.export("torch", tmp_path / f"{name}-moved")
        with pytest.raises(UsageError, match=f"went through {transform}"):
            student.export("hf", tmp_path / f"{name}-hf")
        again = request_of(name, **options)
        again.architecture, again.init = deep, student
        with pytest.raises(MismatchError, match=f"went through {transform}"):
            distill_architecture(again, tmp_path / "other", host=host)
        folders += [str(tmp_path / name), str(tmp_path / f"{name}-moved")]
    with pytest.raises(UsageError, match="'transforms' must give 'name'"):
        nasdistill.build({**deep.to_json(), "space_options": SPACE, "transforms": [{"name": "echoatt"}]}, io=IO)
    done = subprocess.run([sys.executable, "-c", FRESH, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for folder in folders:
        name = Path(folder).name.removesuffix("-moved")
        assert torch.equal(load_file(f"{folder}.answer")["answer"], expected[name]), folder


def test_a_conversion_that_was_stopped_between_its_stages_ends_with_the_same_student(
    host, request_of, tmp_path, capsys, monkeypatch
):
    """By the command: the conversion is done once more, the first stage is not."""
    data = request_of("echoatt_two_stage").config.task.options["data"]
    deep = host.create(Kind.SEARCH_SPACE, "conv_vit", SPACE).architecture({"width": 16, "depth": 2})
    arch = tmp_path / "arch.json"
    arch.write_text(json.dumps({**deep.to_json(), "space_options": SPACE}))
    options = {"share.first": 0, "share.last": 0, "losses": "{kd = 1.0}", "epochs": 1, "adjust_epochs": 0.5}
    chosen = [part for key, value in options.items() for part in ("--set", f"recipe.options.{key}={value}")]

    def distill(name):
        code = main(
            ["distill", str(arch), "--recipe", "echoatt_two_stage", *chosen, "--teacher", "timm:test_resnet",
             "--data", data, "--out", str(tmp_path / name), "--json"]
        )  # fmt: skip
        return code, capsys.readouterr().out

    steps = []

    def watched(*arguments, **more):
        if cut and more["student_label"] == "stage adjust":
            raise KeyboardInterrupt
        return train(*arguments, **more, on_step=lambda info, terms: steps.append(more["student_label"]))

    monkeypatch.setattr("nasdistill.distill.recipes.train", watched)
    cut = False
    code, out = distill("whole")
    whole, done = json.loads(out), list(steps)
    assert code == 0
    assert set(done) == {"stage distil", "stage adjust"}
    steps.clear()
    cut = True
    assert distill("torn")[0] == 130
    assert steps == [step for step in done if step == "stage distil"]
    assert (tmp_path / "torn" / "stages" / "distil.safetensors").is_file()
    assert not (tmp_path / "torn" / "result.json").exists()
    steps.clear()
    cut = False
    code, out = distill("torn")
    torn = json.loads(out)
    assert code == 0
    assert steps == [step for step in done if step == "stage adjust"]
    for key in ("validation", "test", "recipe", "steps", "params", "architecture"):
        assert torn[key] == whole[key], key
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "torn"))
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    students = [nasdistill.load_student(tmp_path / name, host=host) for name in ("whole", "torn")]
    assert [step.name for step in students[1].transforms] == ["transforms:echoatt"]
    assert students[0].transforms == students[1].transforms
    assert not (tmp_path / "torn" / "stages").exists()


def prepared(request, host):
    task = host.create(Kind.TASK, request.config.task.name, request.config.task.options)
    task.prepare()
    return task
