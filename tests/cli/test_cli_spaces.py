"""``nasdistill spaces``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nasdistill.spec.architecture import Architecture


def test_list_imports_no_torch(cli):
    code = (
        "import sys; from nasdistill.cli import main; code = main(['spaces', 'list']); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "spaces:conv_vit" in done.stdout
    listed = json.loads(cli("spaces", "list", "--json").stdout)
    assert {"spaces:conv_vit", "spaces:resnet_s0"} <= {entry["id"] for entry in listed}
    assert all(entry["summary"] and entry["tags"]["family"] for entry in listed)


def test_show_says_axes_and_size(cli_here):
    shown = json.loads(cli_here("spaces", "show", "resnet_s0", "--json").stdout)
    assert shown["size"] == 672
    assert [axis["name"] for axis in shown["axes"]][:3] == ["width", "stem_stride", "stages"]
    assert shown["subspaces"][0]["name"] == "s0"
    assert shown["problem"] is None
    text = cli_here("spaces", "show", "conv_vit", "--options", '{"depth": [1, 2]}').stdout
    assert "block01.attention" in text
    assert "block02.attention" not in text


def test_show_an_architecture_layer_by_layer(cli_here):
    words = ("spaces", "show", "resnet_s0", "--arch", '{"stages": 1, "stage0.blocks": 1}', "--io", "3x32x32:100")
    shown = json.loads(cli_here(*words, "--json").stdout)
    assert sum(layer["params"] for layer in shown["layers"]) == shown["params"]
    assert shown["layers"][0]["shape"] == [3, 32, 32]
    assert shown["layers"][-1]["shape"] == [100]
    text = cli_here(*words).stdout
    assert f"{shown['params']:,}" in text
    assert "stages.0.0.conv1" in text


@pytest.mark.parametrize("space", ["conv_vit", "spaces:resnet_s0"])
def test_sample_is_seeded_and_every_point_is_valid(cli_here, host, tmp_path, space):
    words = ("spaces", "sample", space, "-n", "4", "--seed", "7", "--json")
    first = json.loads(cli_here(*words, "--out", str(tmp_path / "points")).stdout)
    assert first == json.loads(cli_here(*words).stdout)
    assert first != json.loads(cli_here(*words[:-3], "--seed", "8", "--json").stdout)
    points = [Architecture.from_json(entry["architecture"]) for entry in first]
    assert len(set(points)) == 4
    created = host.create("search_space", space)
    for arch, entry in zip(points, first, strict=True):
        created.check(arch)
        assert Architecture.load(tmp_path / "points" / f"{arch.id}.json") == arch
        assert entry["features"] == created.features(arch)
    assert points[0].id in cli_here(*words[:-1]).stdout


def test_sample_from_a_part(cli_here):
    done = json.loads(cli_here("spaces", "sample", "resnet_s0", "--subspace", "s0", "-n", "6", "--json").stdout)
    assert {entry["features"]["width"] for entry in done} == {16}
    assert {entry["features"]["stages"] for entry in done} == {3}


def test_a_small_space_gives_all_it_has(cli_here):
    options = '{"width": [8], "blocks": [1], "stem_stride": [1], "stages": [1, 2]}'
    done = cli_here("spaces", "sample", "resnet_s0", "-n", "9", "--options", options, "--json")
    assert len(json.loads(done.stdout)) == 2
    assert "only 2" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("show", "conv_vitt"), "conv_vit"),
        (("show", "conv_vit", "--options", "{"), "not valid JSON"),
        (("show", "conv_vit", "--options", "[]"), "JSON object"),
        (("show", "conv_vit", "--options", '{"depht": [1]}'), "'depth'"),
        (("show", "conv_vit", "--arch", '{"depth": 77}'), "depth = 77"),
        (("sample", "conv_vit", "-n", "0"), "at least 1"),
        (("sample", "conv_vit", "--io", "8x8"), "3x32x32:10"),
        (("sample", "conv_vit", "--io", "1x2x2:10"), "4 x 4"),
        (("sample", "resnet_s0", "--subspace", "s1"), "'s0'"),
        (("sample", "conv_vit", "--subspace", "tiny"), "None is available"),
    ],
)
def test_wrong_use_is_said_in_words(cli_here, words, says):
    done = cli_here("spaces", *words)
    assert done.returncode == 2
    assert says in done.stderr
    assert not done.stdout
    assert "Traceback" not in done.stderr
