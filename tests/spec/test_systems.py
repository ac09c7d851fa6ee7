"""The systems to cover: the list, and that what is claimed of each is there and tested."""

from __future__ import annotations

import ast
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from nasdistill.spec.component import AttentionSpec, Kind, LossSpec
from nasdistill.spec.systems import System, realise, source_key, systems

TESTS = Path(__file__).parents[1]
CARDS = Path(os.environ.get("NASDISTILL_PAPERS", TESTS.parents[1] / "shared" / "papers"))


@pytest.fixture(scope="module")
def components(host):
    return [(record.id, record.spec) for record in host.specs()]


@pytest.fixture(scope="module")
def claims(components):
    """(arXiv id, canonical id) of everything that a row of the list claims: one pair for each source."""
    return {
        (source, name)
        for system in systems()
        for name, spec in realise(system, components).components
        for source in system.sources & {source_key(text) for text in spec.references}
    }


# ---- the list --------------------------------------------------------------------------------------------------------


def test_numbers_go_from_1_to_72_in_order():
    assert [system.number for system in systems()] == list(range(1, 73))


def test_every_system_has_a_title_and_parts_of_its_own():
    titles = [system.title for system in systems()]
    assert len(set(titles)) == 72
    assert all(title == title.strip() and title for title in titles)
    ids = [source for system in systems() for source in (system.arxiv, *system.also)]
    assert len(set(ids)) == len(ids)
    assert all(source is None or re.fullmatch(r"\d{4}\.\d{5}", source) for source in ids)
    for system in systems():
        assert system.parts
        assert all(isinstance(kind, Kind) and text.strip() for kind, text in system.parts.items())


def test_numbers_titles_and_ids_are_those_of_the_papers_notes():
    if not CARDS.is_dir():
        pytest.skip(f"no notes on the papers at {CARDS} (set NASDISTILL_PAPERS)")
    seen = []
    for path in sorted(CARDS.glob("[0-9][0-9]-*.md")):
        number, text = re.fullmatch(r"# (\d\d) (.*)", path.read_text(encoding="utf-8").splitlines()[0]).groups()
        title = re.split(r" \((?=[^()]*\b(?:19|20)\d\d\b)", text, maxsplit=1)[0]  # authors and year stand behind it
        seen.append((int(number), title, re.findall(r"arXiv (\d{4}\.\d{5})", text)))
    ours = [(system.number, system.title, [s for s in (system.arxiv, *system.also) if s]) for system in systems()]
    assert ours == seen


# ---- the rule --------------------------------------------------------------------------------------------------------

SYSTEM = System(1, "Half and half", "2001.00001", ("2001.00002",), {Kind.LOSS: "a loss", Kind.ATTENTION: "a map"})


def loss(*references, **more):
    return ("acme:loss", LossSpec("loss", "acme:Loss", "a loss", references=references, **more))


def attention(*references, **more):
    return ("acme:attention", AttentionSpec("attention", "acme:Attention", "a map", references=references, **more))


def test_without_a_component_a_system_is_planned():
    for given in ([], [loss("arXiv:2001.00003"), attention("A. Author 2001")]):
        found = realise(SYSTEM, given)
        assert (found.state, found.components) == ("planned", ())
        assert found.left_out == "no loss (a loss); no attention (a map)"


def test_with_one_kind_it_is_partial_and_says_what_is_missing():
    found = realise(SYSTEM, [loss("arXiv:2001.00001", left_out="The tail.")])
    assert found.state == "partial"
    assert found.missing == (Kind.ATTENTION,)
    assert found.left_out == "no attention (a map); acme:loss: The tail"


def test_with_all_kinds_it_works():
    found = realise(SYSTEM, [loss("arXiv:2001.00002"), attention("see https://arxiv.org/abs/2001.00001v3")])
    assert (found.state, found.missing, found.left_out) == ("works", (), "")
    assert [name for name, _ in found.components] == ["acme:attention", "acme:loss"]


def test_a_component_that_lacks_an_essential_is_not_enough():
    whole, part = attention("arXiv:2001.00001"), {"left_out": "Half.", "partly": ("arXiv:2001.00001",)}
    found = realise(SYSTEM, [loss("arXiv:2001.00001", **part), whole])
    assert (found.state, found.missing) == ("partial", (Kind.LOSS,))
    assert found.left_out == "acme:loss: Half"
    beside = ("acme:other", LossSpec("other", "acme:Loss", "a loss", references=("arXiv:2001.00001",)))
    assert realise(SYSTEM, [loss("arXiv:2001.00001", **part), beside, whole]).state == "works"
    assert realise(SYSTEM, [loss("arXiv:2001.00001", "x", left_out="Half.", partly=("x",)), whole]).state == "works"


def test_a_component_of_another_kind_alone_makes_it_partial():
    found = realise(System(1, "T", "2001.00001", (), {Kind.RECIPE: "r"}), [loss("arXiv:2001.00001")])
    assert (found.state, found.missing) == ("partial", (Kind.RECIPE,))


@pytest.mark.parametrize("text", [
    "arXiv:2303.15678", "arxiv: 2303.15678v2", "arXiv 2303.15678", "https://arxiv.org/abs/2303.15678",
    "DisWOT (https://arxiv.org/pdf/2303.15678v1.pdf)", "2303.15678",
])  # fmt: skip
def test_ways_to_write_an_id(text):
    assert source_key(text) == "2303.15678"


def test_other_references_are_themselves():
    assert source_key(" doi:10.1109/4235.996017 ") == "doi:10.1109/4235.996017"
    assert source_key("Tables of 2303.15678 numbers") != "2303.15678"


@pytest.mark.parametrize(("more", "says"), [
    ({"references": ("a",), "partly": ("b",), "left_out": "x"}, "partly names 'b'"),
    ({"references": ("a",), "partly": ("a",)}, "left_out"),
    ({"references": "arXiv:2303.15678"}, "references 'arXiv:2303.15678' must be a tuple"),
    ({"references": (None,)}, "references"),
    ({"references": ("a",), "partly": ("a",), "left_out": 3}, "left_out 3 must be a text"),
])  # fmt: skip
def test_a_spec_says_what_is_wrong_with_its_sources(more, says):
    [problem] = LossSpec("loss", "acme:Loss", "a loss", **more).problems()
    assert says in problem


# ---- the bundled components ------------------------------------------------------------------------------------------


def test_every_bundled_component_names_a_reference(components):
    assert len(components) > 40
    assert [name for name, spec in components if not spec.references] == []
    assert [f"{name}: {problem}" for name, spec in components for problem in spec.problems()] == []


def test_references_look_like_sources(components):
    source = re.compile(r"arXiv:\d{4}\.\d{4,5}|doi:10\.\d{4,}/\S+|https://\S+|.*\b(19|20)\d\d\b.*|UCI .*")
    odd = [f"{name}: {text}" for name, spec in components for text in spec.references if not source.fullmatch(text)]
    assert odd == []


def test_every_claimed_component_exists(host, components):
    claimed = {
        (spec.kind, name) for system in systems() for name, spec in realise(system, components).components
    }  # fmt: skip
    assert claimed
    for kind, name in claimed:
        assert isinstance(host.load(kind, name), type)


def test_the_papers_that_the_code_cites_are_claimed(host, claims):
    """A paper of the list that a component's file cites is the source of some component, if not of this one."""
    known = {source for system in systems() for source in system.sources}
    cited = {source for source, _ in claims}
    for record in host.specs():
        module = host.load(record.kind, record.id).__module__
        text = __import__(module, fromlist=["_"]).__doc__ or ""
        named = {found for found in re.findall(r"arXiv[: ](\d{4}\.\d{5})", text) if found in known}
        assert named <= cited, f"{record.id} cites {named - cited}, which no component claims"


def marked(path: Path) -> Iterator[tuple[str, str, str]]:
    """(source, component, where) of each ``@pytest.mark.paper(...)`` of a file, without importing it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        for item in node.decorator_list:
            if isinstance(item, ast.Call) and ast.unparse(item.func) == "pytest.mark.paper":
                assert node.name.startswith(("test_", "Test")), f"{path.name}: {node.name} is no test"
                source, component = (ast.literal_eval(argument) for argument in item.args)
                yield source, component, f"{path.relative_to(TESTS)}::{node.name}"


@pytest.fixture(scope="module")
def tested():
    found = defaultdict(list)
    for path in TESTS.rglob("test_*.py"):
        for source, component, where in marked(path):
            found[source, component].append(where)
    return found


def test_every_claim_is_tested(claims, tested):
    untested = [f"{component} cites {source}: no test has the marker" for source, component in claims - set(tested)]
    assert untested == []


def test_every_marker_is_a_claim(claims, tested):
    strange = {pair: tested[pair] for pair in set(tested) - claims}
    assert strange == {}, "these tests are marked for what no component claims"


def test_markers_are_read_off_tests_only(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "TESTS", tmp_path)
    file, marker = tmp_path / "test_x.py", '@pytest.mark.paper("2001.00001", "acme:loss")\n'
    file.write_text(f"import missing\n{marker}def test_a():\n    pass\ndef test_b():\n    pass\n")
    assert list(marked(file)) == [("2001.00001", "acme:loss", "test_x.py::test_a")]
    file.write_text(f"{marker}def helper():\n    pass\n")
    with pytest.raises(AssertionError, match="helper is no test"):
        list(marked(file))
