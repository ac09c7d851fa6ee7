"""`decoder`: the networks are transformers', importance by hand, and slices that compute what they should."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nasdistill.bridge.transformers import TokenModel
from nasdistill.errors import ArchitectureError, ConfigError, MismatchError
from nasdistill.interfaces import Batch, ModelGeometry
from nasdistill.interfaces.info import TeacherInfo
from nasdistill.spec.component import Kind
from nasdistill.spec.io import IOSpec
from nasdistill_spaces.decoder import DecoderOptions
from nasdistill_spaces.decoder.families import read_teacher
from nasdistill_spaces.decoder.importance import Importance, language_loss
from nasdistill_spaces.decoder.inherit import Scores, choose, residual_pairs, score_parts, slicing_plan, spread
from nasdistill_spaces.decoder.model import parameter_count

V, N = 40, 12
IO = IOSpec("tokens", (N,), V, V, "causal_lm")
CLASSES, PAD = IOSpec("tokens", (N,), 3, V), 3
GPT2 = {"layers": 3, "width": 32, "heads": 4, "mlp": 48, "positions": 24}
LLAMA = {"style": "llama", "layers": 3, "width": 32, "heads": 8, "kv_heads": 4, "head_dim": 8, "mlp": 48,
         "positions": 24, "tied": False, "qkv_bias": True}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def options(request):
    return GPT2 if request.param == "gpt2" else LLAMA


@pytest.fixture
def space(host, options):
    return made(host, options)


def made(host, options, **more):
    return host.create(Kind.SEARCH_SPACE, "decoder", {**options, **more})


def network(space, params=None, io=IO, seed=0):
    """A network in eval mode, no parameter at its initial value."""
    arch = space.architecture(params or {})
    net = space.build(arch, io).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return arch, net


def ids(batch=4, tokens=N, seed=3):
    return torch.randint(V, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def batch_of(tokens, mask=None):
    inputs = {"input_ids": tokens} if mask is None else {"input_ids": tokens, "attention_mask": mask}
    return Batch(inputs, None, torch.arange(len(tokens)))


def right_padded(lengths):
    return (torch.arange(N)[None] < torch.tensor(lengths)[:, None]).long()


def padded(tokens, mask):
    """Put the padding's id where the mask is 0, and nowhere else."""
    return torch.where(mask == 1, torch.where(tokens == PAD, PAD + 1, tokens), PAD)


def run(net, *inputs):
    with torch.no_grad():
        return net(*inputs)


def cut(host, options, teacher, calibration=(), **params):
    """A student of these sizes with the teacher's weights, and what it was told."""
    choices = {name: [size] for name, size in params.items()}
    space = made(host, options, choices=choices)
    arch = space.default()
    student = space.build(arch, IO).eval()
    report = space.inherit(student, arch, teacher, calibration=calibration)
    return student, report


# ---- the networks are transformers' ----------------------------------------------------------------------------------


@cache
def stock(family):
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

    common = {"vocab_size": V, "bos_token_id": None, "eos_token_id": None}
    llama = {**common, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    scaled = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 16}  # fmt: skip
    config = {
        "gpt2": lambda: GPT2Config(**common, n_positions=24, n_embd=32, n_layer=2, n_head=4),
        "llama": lambda: LlamaConfig(**llama, num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
                                     rope_parameters=scaled),
        "qwen2": lambda: Qwen2Config(**llama, num_key_value_heads=1, tie_word_embeddings=True),
        "mistral": lambda: MistralConfig(**llama, num_key_value_heads=2, sliding_window=16),
    }[family]()  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def adapted(host, family, **more):
    cls = host.load(Kind.SEARCH_SPACE, "decoder")
    sizes = cls.adapted({}, TeacherInfo("transformers", json.loads(json.dumps(stock(family).config.to_dict()))))
    return made(host, sizes, **more)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "mistral"])
def test_at_full_size_it_is_the_teacher(host, family):
    teacher, space = TokenModel(stock(family), "causal_lm").eval(), adapted(host, family)
    arch = space.default()
    student = space.build(arch, IO).eval()
    before = copy.deepcopy(teacher.state_dict())
    report = space.inherit(student, arch, teacher, calibration=[batch_of(ids())])
    assert report.copied == report.total == parameter_count(student.shape)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    mask = right_padded([12, 7, 3, 1])
    plain = (run(student, ids()) - run(teacher, ids())).abs().max()
    padded = ((run(student, ids(), mask) - run(teacher, ids(), mask)).abs() * mask[..., None]).max()
    if family == "gpt2":  # one fused product there, three here: the same numbers in another order of summation
        assert max(plain, padded) < 1e-6
    else:
        assert plain == padded == 0.0


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "mistral"])
def test_classifiers_read_the_token_that_transformers_reads(host, family):
    """The last one whose id is not the padding's: padded right or left, not at all, ending in that id as real text."""
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(stock(family).config)
    config.num_labels, config.pad_token_id = 3, PAD
    torch.manual_seed(0)
    teacher = TokenModel(AutoModelForSequenceClassification.from_config(config), "classes").eval()
    sizes = host.load(Kind.SEARCH_SPACE, "decoder").adapted({}, TeacherInfo("transformers", config.to_dict()))
    space = made(host, sizes)
    student = space.build(space.default(), CLASSES).eval()
    report = space.inherit(student, space.default(), teacher)
    assert report.copied == report.total
    right = right_padded([12, 7, 3, 1])
    ends_in_padding = ids().index_fill(1, torch.tensor([N - 2, N - 1]), PAD)
    inputs = [(padded(ids(), right), right), (padded(ids(), right.flip(1)), right.flip(1)), (ids(), None),
              (ends_in_padding, None), (ends_in_padding, torch.ones_like(right))]  # fmt: skip
    named = space.stock_model(space.default(), CLASSES).config["architectures"]
    assert named == [type(teacher.model).__name__.replace("Mistral", "Llama")]
    for tokens, mask in inputs:
        assert torch.allclose(run(student, tokens, mask), run(teacher, tokens, mask), atol=1e-6, rtol=0)
    by_mask = made(host, {**sizes, "padding_id": None})
    assert by_mask.stock_model(by_mask.default(), CLASSES) is None
    found = space.inherit(by_mask.build(by_mask.default(), CLASSES), by_mask.default(), teacher)
    assert found.copied == found.total


OPEN = """
import sys, torch
from nasdistill.bridge import prepare_imports
prepare_imports()
from safetensors.torch import load_file
import transformers
for folder in sys.argv[1:]:
    classes = folder.endswith("classes")
    auto = getattr(transformers, "AutoModelForSequenceClassification" if classes else "AutoModelForCausalLM")
    model, told = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    case = load_file(folder + "/case.safetensors")
    with torch.no_grad():
        found = model.eval()(input_ids=case["ids"], attention_mask=case["mask"]).logits
    gap = ((found - case["logits"]).abs() * (1 if classes else case["mask"][..., None])).max()
    assert gap < 1e-6, (folder, gap)
"""


@pytest.mark.slow
def test_points_open_as_stock_models_in_a_fresh_process(host, tmp_path):
    from safetensors.torch import save_file

    cases = {
        "gpt2": (GPT2, {"layers": 2, "width": 16, "heads": 2}),
        "llama": (LLAMA, {"layers": 2, "width": 24, "groups": 2, "queries": 1}),
        "plain": ({**LLAMA, "qkv_bias": False, "tied": True}, {"width": 16, "queries": 1}),
    }
    kinds = {"gpt2": "gpt2", "llama": "qwen2", "plain": "llama"}
    cases |= {f"{name}-classes": ({**options, "padding_id": 3}, params) for name, (options, params) in cases.items()}
    for name, (options, params) in cases.items():
        space, io = made(host, options), CLASSES if name.endswith("classes") else IO
        arch, net = network(space, params, io)
        model = space.stock_model(arch, io)
        assert model.config["model_type"] == kinds[name.partition("-")[0]]
        folder, mask = tmp_path / name, right_padded([12, 5, 2, 9])
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(model.config))
        state = {key: tensor.contiguous() for key, tensor in model.weights(net.state_dict()).items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        tokens = padded(ids(), mask)
        case = {"ids": tokens, "mask": mask, "logits": run(net, tokens, mask)}
        save_file(case, folder / "case.safetensors")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OPEN, *(str(tmp_path / name) for name in cases)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_what_no_stock_model_says_is_none(host):
    uneven = made(host, GPT2)
    assert uneven.stock_model(uneven.architecture({"heads": 2}), IO) is None  # heads * size != width
    each = made(host, LLAMA, per_layer=True)
    assert each.stock_model(each.default(), IO) is not None
    assert each.stock_model(each.architecture({"layer01.mlp": each.options.sizes()["mlp"][0]}), IO) is None
    mixed = made(host, LLAMA, attention=["softmax", "linear"])
    assert mixed.stock_model(mixed.architecture({"layer02.attention": "linear"}), IO) is None


def test_exports_with_padding(host, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="extra 'onnx' is not installed")
    from nasdistill.bridge.onnx import export_onnx

    for options in (GPT2, LLAMA):
        _, net = network(made(host, options), {"layers": 2})
        mask, path = right_padded([12, 5, 2, 9]), tmp_path / "model.onnx"
        export_onnx(net, (ids(), mask), path, dynamo=False, inputs=("input_ids", "attention_mask"), any_batch=True)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        feeds = {"input_ids": ids(2).numpy(), "attention_mask": mask[:2].numpy()}
        [found] = session.run(None, feeds)
        expected = run(net, ids(2), mask[:2]).numpy()
        assert (np.abs(found - expected) * feeds["attention_mask"][..., None]).max() < 1e-5


def test_padding_and_later_tokens_have_no_influence(space):
    _, net = network(space)
    mask, other = right_padded([12, 7, 3, 1]), ids(seed=9)
    changed = torch.where(mask == 1, ids(), other)
    assert torch.equal(run(net, ids(), mask) * mask[..., None], run(net, changed, mask) * mask[..., None])
    later = ids().clone()
    later[:, 6:] = other[:, 6:]
    assert torch.equal(run(net, ids())[:, :6], run(net, later)[:, :6])


def test_classes_come_from_the_last_real_token(host, options):
    io = IOSpec("tokens", (N,), 3, V)
    _, net = network(made(host, options), io=io)
    out = run(net, ids(), right_padded([12, 7, 3, 1]))
    assert out.shape == (4, 3)
    for row, length in enumerate([12, 7, 3, 1]):
        assert torch.allclose(out[row], run(net, ids()[row : row + 1, :length])[0], atol=1e-6)


# ---- importance ------------------------------------------------------------------------------------------------------


@pytest.mark.paper("2407.14679", "spaces:decoder")
def test_scores_are_those_of_the_formula(space):
    """Mean of absolute values over real tokens, then squares, summed over samples of all batches, then the root."""
    _, net = network(space)
    mask = right_padded([12, 7, 3, 1])
    batches = [batch_of(ids(), mask), batch_of(ids(2, 6, seed=8))]
    found, seen = Importance(net, batches), {}
    names = [name for name, _ in net.named_modules() if name.endswith(("norm", "o_proj", "down_proj"))]
    for batch in batches:
        handles = [
            net.get_submodule(name).register_forward_hook(
                lambda module, args, output, name=name: seen.setdefault(name, []).append(
                    output if name.endswith("norm") else args[0]
                )
            )
            for name in names
        ]
        given_ids, given_mask = batch.inputs["input_ids"], batch.inputs.get("attention_mask")
        run(net, given_ids, given_mask)
        for handle in handles:
            handle.remove()

    def score(name):
        total = 0.0
        for batch, act in zip(batches, seen[name], strict=True):
            real = batch.inputs.get("attention_mask", torch.ones(act.shape[:2]))
            for sample, keep in zip(act, real, strict=True):
                total = total + sample[keep == 1].abs().mean(0) ** 2
        return total**0.5

    size, shape = net.shape.head_dim, net.shape
    expected = sum(score(name) for name in names if name.endswith("norm"))
    assert torch.allclose(found.channels, expected, rtol=1e-5)
    for layer in range(shape.layers):
        context = score(f"layers.{layer}.self_attn.o_proj")
        heads = torch.stack([part.norm() for part in context.split(size)])
        within = shape.heads[layer] // shape.kv_heads[layer]
        assert torch.allclose(found.heads[layer], heads, rtol=1e-5)
        assert torch.allclose(found.groups[layer], heads.reshape(-1, within).norm(dim=1), rtol=1e-5)
        assert torch.allclose(found.neurons[layer], score(f"layers.{layer}.mlp.down_proj"), rtol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.paper("2407.14679", "spaces:decoder")
def test_values_are_averaged_before_they_are_squared(space):
    """Twice the tokens change nothing about a sample; a sample that comes twice counts twice in the sum of squares."""
    _, net = network(space, {"layers": space.options.sizes()["layers"][0]})
    one, two = Importance(net, [batch_of(ids(1))]), Importance(net, [batch_of(ids(1).repeat(2, 1))])
    assert torch.allclose(two.channels, one.channels * 2**0.5, rtol=1e-5)
    assert torch.allclose(two.layers, one.layers, atol=1e-5)


@pytest.mark.paper("2407.14679", "spaces:decoder")
@pytest.mark.parametrize("layers", ["bi", "ppl"])
def test_padding_does_not_enter_the_scores(space, layers):
    _, net = network(space)
    mask, other = right_padded([12, 7, 3, 2]), ids(seed=9)
    changed = torch.where(mask == 1, ids(), other)
    one, two = (Importance(net, [batch_of(tokens, mask)], layers=layers) for tokens in (ids(), changed))
    assert torch.equal(one.channels, two.channels)
    assert torch.equal(one.layers, two.layers)
    assert all(torch.equal(a, b) for a, b in zip(one.heads + one.neurons, two.heads + two.neurons, strict=True))
    alone = [batch_of(ids()[row : row + 1, :length]) for row, length in enumerate([12, 7, 3, 2])]
    three = Importance(net, alone, layers=layers)
    assert torch.allclose(one.channels, three.channels, rtol=1e-4)
    assert torch.allclose(one.layers, three.layers, atol=1e-5)


@pytest.mark.paper("2407.14679", "spaces:decoder")
def test_a_layer_that_does_nothing_has_no_influence(space):
    _, net = network(space)
    with torch.no_grad():
        for name, parameter in net.layers[1].named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.zero_()
    found, loss = (Importance(net, [batch_of(ids())], layers=kind).layers for kind in ("bi", "ppl"))
    assert abs(found[1]) < 1e-6
    assert min(found[0], found[2]) > 1e-3
    assert loss[1] == 0.0


@pytest.mark.paper("2407.14679", "spaces:decoder")
def test_the_rise_of_the_loss_is_that_of_the_model_without_the_layer(space):
    _, net = network(space)
    batch = batch_of(ids(), right_padded([12, 7, 3, 2]))
    labels = ids().masked_fill(batch.inputs["attention_mask"] == 0, -100)
    logits = run(net, ids(), batch.inputs["attention_mask"])
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    whole = language_loss(net, [batch])
    assert whole.item() == pytest.approx(expected.item(), rel=1e-6)
    rise = Importance(net, [batch], layers="ppl").layers
    del net.layers[1]
    assert rise[1].item() == pytest.approx((language_loss(net, [batch]) - whole).item(), abs=1e-6)


@pytest.mark.paper("2407.14679", "spaces:decoder")
def test_neurons_can_be_scored_before_the_activation(space):
    _, net = network(space)
    found = Importance(net, [batch_of(ids(1))], pre=True).neurons[0]
    first = net.layers[0].mlp.gate_proj if net.shape.gated else net.layers[0].mlp.up_proj
    with torch.no_grad():
        x = net.embed_tokens(ids(1)) + (0.0 if net.embed_positions is None else net.embed_positions.weight[:N])
        seen = []
        handle = net.layers[0].post_attention_layernorm.register_forward_hook(lambda m, a, o: seen.append(o))
        net(ids(1))
        handle.remove()
        assert x.shape == seen[0].shape
        assert torch.allclose(found, first(seen[0]).abs().mean((0, 1)), rtol=1e-4)


def test_it_leaves_mode_gradients_and_weights_as_they_were(space):
    _, net = network(space)
    net.train()
    net.layers[0].eval()
    before = copy.deepcopy(net.state_dict())
    Importance(net, [batch_of(ids())])
    assert net.training
    assert not net.layers[0].training
    assert net.layers[1].training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


# ---- slices ----------------------------------------------------------------------------------------------------------


@pytest.mark.paper("2407.14679", "spaces:decoder")
@pytest.mark.parametrize("ranking", ["importance", "random", "inverse", "first"])
def test_pruning_nothing_changes_nothing(host, options, ranking):
    _, teacher = network(made(host, options))
    student, report = cut(host, {**options, "ranking": ranking}, teacher, [batch_of(ids())])
    assert torch.equal(run(student, ids()), run(teacher, ids()))
    assert report.copied == report.total


@pytest.mark.paper("2407.14679", "spaces:decoder")
def test_dead_heads_and_neurons_score_nothing_and_can_go(host, options):
    _, teacher = network(made(host, options))
    size, grouped = teacher.shape.head_dim, teacher.shape.heads != teacher.shape.kv_heads
    dead_neurons = [torch.randperm(48)[:24] for _ in range(3)]
    with torch.no_grad():
        for layer, neurons in zip(teacher.layers, dead_neurons, strict=True):
            mlp, attention = layer.mlp, layer.self_attn
            for name, parameter in mlp.named_parameters():
                if "down" not in name:
                    parameter[neurons] = 0
            group = torch.randint(teacher.shape.kv_heads[0], ()).item()
            for name, parameter in attention.named_parameters():
                if "v_proj" in name:
                    parameter[group * size : (group + 1) * size] = 0
    found = Importance(teacher, [batch_of(ids())])
    for layer, neurons in enumerate(dead_neurons):
        assert torch.equal((found.neurons[layer] == 0).nonzero().flatten(), neurons.sort().values)
        assert (found.groups[layer] == 0).sum() == 1
    sizes = {"mlp": 24, "groups" if grouped else "heads": teacher.shape.kv_heads[0] - 1}
    student, _ = cut(host, options, teacher, [batch_of(ids())], **sizes)
    assert torch.allclose(run(student, ids()), run(teacher, ids()), atol=1e-5)


@pytest.mark.paper("2407.14679", "spaces:decoder")
def test_a_slice_is_the_teacher_with_columns_set_to_zero(host, options):
    """Groups, query heads within groups, and neurons: exact, to the last bit where torch sums in the same order."""
    _, teacher = network(made(host, options))
    grouped = teacher.shape.heads != teacher.shape.kv_heads
    sizes = {"mlp": 20, **({"groups": 2, "queries": 1} if grouped else {"heads": 2})}
    student, _ = cut(host, options, teacher, [batch_of(ids())], **sizes)
    kept = choose(student.shape, teacher.shape, score_parts(teacher, [batch_of(ids())]))
    masked, size = copy.deepcopy(teacher).double(), teacher.shape.head_dim
    with torch.no_grad():
        for layer, block in enumerate(masked.layers):
            heads = torch.zeros(teacher.shape.heads[layer], dtype=torch.bool)
            heads[kept.heads[layer]] = True
            block.self_attn.o_proj.weight[:, ~heads.repeat_interleave(size)] = 0
            neurons = torch.zeros(48, dtype=torch.bool)
            neurons[kept.neurons[layer]] = True
            block.mlp.down_proj.weight[:, ~neurons] = 0
    if grouped:  # one query head of each kept group
        assert [len({int(head) // 2 for head in heads}) for heads in kept.heads] == [2, 2, 2]
    assert (run(student.double(), ids()) - run(masked, ids())).abs().max() < 1e-12


@pytest.mark.paper("2407.14679", "spaces:decoder")
def test_channels_have_one_index_set_for_every_tensor(host, options):
    """Against a hand-written reference: all that reads or writes the stream has lost the same channels."""
    _, teacher = network(made(host, options))
    student, _ = cut(host, options, teacher, [batch_of(ids())], width=16)
    c = Importance(teacher, [batch_of(ids())]).channels.topk(16).indices.sort().values
    theirs = teacher.state_dict()
    for name, tensor in student.state_dict().items():
        source = theirs[name]
        if any(part in name for part in ("o_proj", "down_proj")) or "norm" in name:
            expected = source[c]
        elif "_proj" in name:
            expected = source[:, c] if name.endswith("weight") else source
        else:
            expected = source[:, c]
        assert torch.equal(tensor, expected), name


@pytest.mark.paper("2407.14679", "spaces:decoder")
def test_dead_channels_can_go_where_norms_do_not_see_them(host, options):
    """Nothing writes to the dead channels. With d channels of which k live, RMS norm of all is sqrt(d / k) times that
    of the living; the norm's weight makes up for it. (Layer norm's mean as well: the living sum to 0 here.)
    """
    width, live = 32, 16
    _, teacher = network(made(host, options))
    dead = torch.zeros(width, dtype=torch.bool)
    dead[torch.randperm(width)[: width - live]] = True
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter[dead] = 0
                parameter[~dead] -= parameter[~dead].mean(0, keepdim=True)
            elif "embed" in name:
                parameter[:, dead] = 0
                parameter[:, ~dead] -= parameter[:, ~dead].mean(1, keepdim=True)
            elif "norm" in name:
                parameter[dead] = 0
    assert torch.equal(Importance(teacher, [batch_of(ids())]).channels == 0, dead)
    student, _ = cut(host, options, teacher, [batch_of(ids())], width=live)
    assert not torch.allclose(run(student, ids()), run(teacher, ids()), atol=1e-3)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter *= (width / live) ** 0.5
        for module in student.modules():
            if hasattr(module, "eps"):
                module.eps *= width / live
    assert torch.allclose(run(student, ids()), run(teacher, ids()), atol=1e-5)


@pytest.mark.paper("2407.14679", "spaces:decoder")
def test_layers_go_by_influence(host, options):
    _, teacher = network(made(host, options))
    with torch.no_grad():
        for name, parameter in teacher.layers[0].named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter *= 1e-3
    for score in ("bi", "ppl"):
        student, report = cut(host, {**options, "layer_score": score}, teacher, [batch_of(ids())], layers=2)
        if score == "bi":
            assert "layers 1, 2 of 3" in " ".join(report.notes)
            for name, tensor in student.layers[0].state_dict().items():
                assert torch.equal(tensor, teacher.layers[1].state_dict()[name])
    _, report = cut(host, options, teacher, (), layers=2)
    assert "layers 0, 2 of 3, spread evenly" in report.notes
    assert "norms of weights" in report.notes[0]


def test_evenly_spread_layers():
    assert spread(1, 6) == (0,)
    assert spread(2, 6) == (0, 5)
    assert spread(3, 5) == (0, 2, 4)
    assert spread(6, 6) == tuple(range(6))


@pytest.mark.paper("2407.14679", "spaces:decoder")
def test_residual_pairs():
    assert residual_pairs(6, 4) == [(3, 6), (4, 5)]
    assert residual_pairs(4, 2) == [(1, 4), (2, 3)]
    assert residual_pairs(5, 2) == []
    assert residual_pairs(4, 4) == []
    for total in range(1, 20):
        for kept in range(1, total + 1):
            pairs = residual_pairs(total, kept)
            assert all(1 <= first <= kept < second <= total for first, second in pairs)
            if total <= 2 * kept:
                assert [second for _, second in pairs] == list(range(total, kept, -1))


@pytest.mark.paper("2407.14679", "spaces:decoder")
def test_residuals_of_dropped_heads(host):
    """L = 4, K = 3: the third head by rank becomes twice itself less the fourth, in q, k and v."""
    _, teacher = network(made(host, GPT2))
    plain, _ = cut(host, GPT2, teacher, [batch_of(ids())], heads=3)
    student, report = cut(host, {**GPT2, "head_residual": True}, teacher, [batch_of(ids())], heads=3)
    assert "added to 3 heads" in report.notes[-1]
    order = Importance(teacher, [batch_of(ids())]).heads[1].argsort(descending=True).tolist()
    place = sorted(order[:3]).index(order[2])
    ours, theirs = student.layers[1].self_attn, teacher.layers[1].self_attn
    for part in ("q_proj", "k_proj", "v_proj"):
        heads = theirs.get_submodule(part).weight.unflatten(0, (4, 8))
        found = ours.get_submodule(part).weight.unflatten(0, (3, 8))
        assert torch.allclose(found[place], 2 * heads[order[2]] - heads[order[3]], atol=1e-6)
        for head in order[:2]:
            assert torch.equal(found[sorted(order[:3]).index(head)], heads[head])
    assert torch.equal(ours.o_proj.weight, plain.layers[1].self_attn.o_proj.weight)
    _, teacher = network(made(host, LLAMA))
    plain, _ = cut(host, LLAMA, teacher, [batch_of(ids())], queries=1)
    student, _ = cut(host, {**LLAMA, "head_residual": True}, teacher, [batch_of(ids())], queries=1)
    changed = {
        name for name, tensor in student.state_dict().items() if not torch.equal(tensor, plain.state_dict()[name])
    }
    assert changed == {f"layers.{i}.self_attn.q_proj.{end}" for i in range(3) for end in ("weight", "bias")}


@pytest.mark.paper("2407.14679", "spaces:decoder")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_stock_teachers_are_sliced_as_ours(host, family):
    """Fused and transposed matrices, tied embeddings: the same slices as from our own network of the same weights."""
    teacher, space = stock(family), adapted(host, family, ranking="importance")
    whole = space.build(space.default(), IO).eval()
    space.inherit(whole, space.default(), teacher)
    arch = space.architecture({axis.name: axis.choices[0] for axis in space.axes()})
    one, two = space.build(arch, IO), space.build(arch, IO)
    space.inherit(one, arch, TokenModel(teacher, "causal_lm"), calibration=[batch_of(ids())])
    space.inherit(two, arch, whole, calibration=[batch_of(ids())])
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert ("lm_head.weight" in one.state_dict()) == (family == "llama")


@pytest.mark.paper("2407.14679", "spaces:minitron")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_transform_cuts_as_the_space_does(host, family):
    teacher, batch = TokenModel(stock(family), "causal_lm"), batch_of(ids())
    shares = {"layers": 0.5, "width": 0.5, "heads": 0.5, "mlp": 0.25}
    made_ = host.create(Kind.TRANSFORM, "minitron", shares)
    found = made_.apply(teacher, [batch], lambda model, batch: model(**batch.inputs))
    space = adapted(host, family, shares=[0.25, 0.5, 1.0], divisor=1)
    heads = {"groups": 1, "queries": 2} if family == "llama" else {"heads": 2}
    mlp = space.options.mlp // 4
    arch = space.architecture({"layers": 1, "width": 16, "mlp": mlp, **heads})
    student = space.build(arch, IO).eval()
    space.inherit(student, arch, teacher, calibration=[batch])
    assert torch.equal(run(found.model.eval(), ids()), run(student, ids()))
    assert found.report["params"] == [space.cost(space.default(), IO).params, space.cost(arch, IO).params]
    assert found.report["ranked_by"] == "activations"
    with pytest.raises(MismatchError, match="cuts decoders"):
        made_.apply(nn.Linear(2, 2), [], lambda model, batch: model(batch))


def test_tied_and_untied_output_matrices(host):
    _, tied = network(made(host, GPT2))
    untied, _ = cut(host, {**GPT2, "tied": False}, tied, [batch_of(ids())], width=16)
    assert torch.equal(untied.lm_head.weight, untied.embed_tokens.weight)
    assert untied.lm_head.weight.data_ptr() != untied.embed_tokens.weight.data_ptr()
    twin = copy.deepcopy(tied)
    with torch.no_grad():
        twin.embed_tokens.weight.zero_()
    assert not run(twin, ids()).any()


def test_the_plan_names_every_tensor_with_its_shape(host, options):
    _, teacher = network(made(host, options))
    grouped = "kv_heads" in options
    sizes = {"layers": 2, "width": 16, "mlp": 20, **({"groups": 2, "queries": 1} if grouped else {"heads": 1})}
    student, _ = cut(host, options, teacher, (), **sizes)
    kept = choose(student.shape, teacher.shape, score_parts(teacher, ()))
    plan, theirs = slicing_plan(student.shape, teacher.shape, kept), teacher.state_dict()
    assert set(plan) == set(student.state_dict())
    for name, tensor in student.state_dict().items():
        source, picks = plan[name]
        shape = [size if pick is None else len(pick) for size, pick in zip(theirs[source].shape, picks, strict=True)]
        assert tuple(shape) == tuple(tensor.shape), name


def test_strangers_and_other_head_sizes(host):
    space = made(host, GPT2)
    arch, student = network(space)
    before = copy.deepcopy(student.state_dict())
    _, llama = network(made(host, LLAMA))
    assert space.inherit(student, arch, llama) is None
    assert space.inherit(student, arch, nn.Linear(3, 3)) is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    _, wide = network(made(host, {**GPT2, "head_dim": 16}))
    with pytest.raises(MismatchError, match="16 channels"):
        space.inherit(student, arch, wide)


# ---- the space -------------------------------------------------------------------------------------------------------


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), per_layer=st.booleans(), name=st.sampled_from(["gpt2", "llama"]))
def test_counts_are_the_closed_form(host, seed, per_layer, name):
    import random

    options = GPT2 if name == "gpt2" else LLAMA
    space = made(host, options, per_layer=per_layer)
    arch = space.sample(random.Random(seed))
    net = space.build(arch, IO)
    assert parameter_count(net.shape) == sum(p.numel() for p in net.parameters()) == space.cost(arch, IO).params


@pytest.mark.paper("2407.14679", "spaces:decoder")
def test_a_window_of_parameters(host):
    import random

    limited = {**LLAMA, "vocabulary": V, "choices": {"layers": [2, 3], "groups": [2, 4], "width": [16, 24, 32]}}
    space, free = made(host, {**limited, "params": 0.5, "tolerance": 0.08}), made(host, limited)
    target = free.cost(free.default(), IO).params * 0.5
    inside = list(space.enumerate())
    everything = {a.params: free.cost(a, IO).params for a in free.enumerate()}
    assert {a.params for a in inside} == {p for p, count in everything.items() if abs(count - target) <= 0.08 * target}
    assert 1 < len(inside) == space.size() < len(everything)
    assert space.default() in inside
    rng = random.Random(0)
    assert {space.sample(rng) for _ in range(200)} == set(inside)
    assert all(space.mutate(arch, rng) in inside and space.mutate(arch, rng) != arch for arch in inside)
    outside = next(p for p, count in everything.items() if abs(count - target) > 0.08 * target)
    with pytest.raises(ArchitectureError, match="not within 8%"):
        space.architecture(outside)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"params": 0.5}, "needs `vocabulary`"),
        ({"params": 10, "vocabulary": V}, "the nearest has"),
        ({"choices": {"groups": [2]}}, "has `heads`"),
        ({"choices": {"width": [64]}}, "more than the largest"),
        ({"style": "llama", "head_dim": 5}, "even size"),
        ({"heads": 3}, "must divide the width"),
        ({"kv_heads": 3}, "do not divide"),
        ({"attention_options": {"flow": {}}}, "does not list"),
    ],
)
def test_options_that_cannot_be(host, changes, words):
    with pytest.raises(ConfigError, match=words):
        made(host, {**GPT2, **changes})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "bloom"}, "'bloom'"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "rope_scaling": {"type": "yarn"}}, "yarn"),
    ],
)
def test_teachers_that_it_cannot_serve(host, config, words):
    with pytest.raises(MismatchError, match=words):
        host.load(Kind.SEARCH_SPACE, "decoder").adapted({}, TeacherInfo("transformers", config))


def test_old_configurations_are_read():
    """Files on the hub are older than the library: rotary settings in two keys, no head size."""
    from nasdistill_spaces.decoder.families import sizes_of

    found = sizes_of(
        {"model_type": "llama", "vocab_size": 10, "hidden_size": 64, "num_attention_heads": 8, "rope_theta": 5e5,
         "num_hidden_layers": 2, "intermediate_size": 96, "max_position_embeddings": 128, "hidden_act": "silu",
         "rope_scaling": {"type": "linear", "factor": 2.0}}
    )  # fmt: skip
    assert (found["head_dim"], found["kv_heads"], found["rope_theta"]) == (8, 8, 5e5)
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    DecoderOptions.model_validate(found)


def test_a_teacher_of_another_kind_is_no_decoder():
    assert read_teacher(nn.Sequential(nn.Linear(2, 2))) is None
    scores = Scores(torch.tensor([1.0, 2.0]), [], [], [], None).mapped(torch.neg)
    assert scores.channels.tolist() == [-1.0, -2.0]


@pytest.mark.parametrize("variant", ["nothing_like_it", "window_of_images"])
def test_unknown_variants_are_refused(host, variant):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        space = made(host, GPT2, attention=["softmax", variant])
        with pytest.raises(ArchitectureError, match=variant):
            space.build(space.architecture({"layer00.attention": variant}), IO)


def test_losses_pair_layers_with_those_that_weights_come_from(host):
    space = made(host, GPT2)
    for depth in {axis.name: axis.choices for axis in space.axes()}["layers"]:
        arch = space.architecture({"layers": depth})
        found = space.layer_map(arch, ModelGeometry({}, layers=4))
        assert found == {**dict(enumerate(spread(depth, 4))), depth - 1: 3}
