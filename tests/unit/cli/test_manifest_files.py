"""Manifests are read strictly, and every complaint names the file and the line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.errors import Failed
from cli.manifests import FILE_BYTES, Malformed, parse, read

ROOT = Path(__file__).resolve().parents[3]


def problem(text: str, name: str = "a.yaml") -> Malformed:
    with pytest.raises(Malformed) as caught:
        parse(text, name)
    return caught.value


def test_a_file_with_several_documents_numbers_them() -> None:
    found = parse("kind: Pod\n---\n\n---\nkind: Service\n", "a.yaml")
    assert [(each.source, each.manifest) for each in found] == [
        ("a.yaml, document 1", {"kind": "Pod"}),
        ("a.yaml, document 3", {"kind": "Service"}),
    ]


def test_a_single_document_is_called_by_its_file() -> None:
    assert parse("kind: Pod\n", "a.yaml")[0].source == "a.yaml"


def test_a_list_is_taken_apart() -> None:
    found = parse("kind: List\nitems:\n- kind: Pod\n- kind: Service\n", "a.yaml")
    assert [each.source for each in found] == ["a.yaml, item 1", "a.yaml, item 2"]


def test_a_key_given_twice_is_refused_with_both_lines() -> None:
    error = problem("kind: Pod\nmetadata:\n  name: a\n  labels: {}\n  name: b\n")
    assert error.line == 5
    assert error.problem == "the key 'name' is there twice, first on line 3"


def test_broken_yaml_names_the_line() -> None:
    assert problem("kind: Pod\nmetadata: [a, b\nspec: {}\n").line == 3


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("2024-01-01", "2024-01-01"),
        ("80:81", "80:81"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("1.2.3", "1.2.3"),
        ("80", 80),
        ("-5", -5),
        ("0x10", 16),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("true", True),
        ("", None),
        ("~", None),
        ('"80"', "80"),
    ],
)
def test_scalars_are_what_a_manifest_means(written: str, value: object) -> None:
    found = parse(f"a: {written}\n", "a.yaml")[0].manifest["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['true']\n",
        "a: !!binary aGVsbG8=\n",
        "a: !custom x\n",
        "a: .inf\n",
        "a: .nan\n",
        "a: 99999999999999999999\n",
        "1: a\n",
        "true: a\n",
        "? [a]\n: b\n",
        "a: &x [*x]\n",
        "- a\n- b\n",
        "just text\n",
        "a: " + "[" * 5000 + "]" * 5000 + "\n",
        "\tkind: Pod\n",
        "a: \x00\n",
        "a: *nothing\n",
    ],
)
def test_what_no_manifest_may_hold_is_refused(text: str) -> None:
    assert problem(text).problem


NESTED = ["[" * 100_000, "- " * 100_000, "a: " + "{a: " * 100_000, "x: 1\na: " + "[" * 65 + "]" * 65]


@pytest.mark.parametrize("text", NESTED, ids=["lists", "entries", "mappings", "one too deep"])
def test_what_is_nested_without_end_is_one_line_and_kills_nobody(text: str, tmp_path: Path) -> None:
    """In a process of its own: the C library would take the whole one with it."""
    (tmp_path / "a.yaml").write_text(text)
    command = [sys.executable, "-m", "cli", "apply", "-f", str(tmp_path / "a.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    line = text.count("\n") + 1
    assert done.stderr == f"plexus: {tmp_path}/a.yaml, line {line}: nested more than 64 levels deep\n"
    assert done.returncode == 1


@pytest.mark.parametrize("levels", [65, 500, 100_000])
def test_json_that_is_nested_too_deep_is_refused(levels: int) -> None:
    assert "64 levels" in problem('{"a": ' + "[" * (levels - 1) + "]" * (levels - 1) + "}", "a.json").problem


def test_as_deep_as_is_allowed_is_taken() -> None:
    text = '{"a": ' + "[" * 63 + "]" * 63 + "}"
    assert parse(text, "a.yaml")[0].manifest == parse(text, "a.json")[0].manifest


def test_aliases_that_unfold_to_something_huge_are_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "once its aliases are written out" in problem("\n".join(lines)).problem


def test_a_merge_key_fills_in_what_is_not_written() -> None:
    found = parse("base: &b {x: 1, y: 2}\nmore:\n  <<: *b\n  y: 3\n", "a.yaml")
    assert found[0].manifest["more"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("1" * 5000, "needs more than 64 bits"),
        ("9223372036854775808", "needs more than 64 bits"),
        ("1e999", "is not a number that a manifest can hold"),
        (r'"\ud800"', "is no character"),
    ],
    ids=["a number of 5000 digits", "a number of 65 bits", "a number without bound", "half a pair"],
)
def test_a_json_value_that_no_bus_carries_is_one_short_line(value: str, said: str) -> None:
    found = problem(f'{{"a": {value}}}', "a.json").problem
    assert said in found and len(found) < 200


def test_a_json_value_at_the_edge_is_taken() -> None:
    text = r'{"a": 9223372036854775807, "b": -9223372036854775808, "c": 1e308, "d": "\ud83d\ude00"}'
    assert list(parse(text, "a.json")[0].manifest.values()) == [2**63 - 1, -(2**63), 1e308, "\U0001f600"]


@pytest.mark.parametrize("name", ["kustomization.yaml", "deep/kustomization.yml"])
def test_a_kustomization_need_not_say_what_it_is(name: str) -> None:
    (found,) = parse("resources: [a.yaml]", name)
    assert (found.manifest["kind"], found.manifest["resources"]) == ("Kustomization", ["a.yaml"])
    (other,) = parse("{apiVersion: kustomize.config.k8s.io/v1alpha1, kind: Component}", name)
    assert other.manifest["kind"] == "Component"
    assert "kind" not in parse("resources: [a.yaml]", "other.yaml")[0].manifest


def test_a_long_value_in_an_error_is_cut(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"? {'k' * 5000}\n: 1\n? {'k' * 5000}\n: 2\n")
    with pytest.raises(Failed) as failed:
        read([str(tmp_path)])
    (line,) = failed.value.lines
    assert len(line) <= 1500 and line.endswith("first on line 1")


def test_json_is_read_as_strictly() -> None:
    assert parse('{"kind": "Pod"}', "a.json")[0].manifest == {"kind": "Pod"}
    assert "twice" in problem('{"a": 1, "a": 2}', "a.json").problem
    assert problem('{\n"a": }', "a.json").line == 2
    assert "NaN" in problem('{"a": NaN}', "a.json").problem


def test_a_folder_is_read_recursively_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.yml", "a.yaml", "sub/c.json", "notes.txt"):
        (tmp_path / name).write_text('{"kind": "Pod"}')
    assert [Path(each.source).name for each in read([str(tmp_path)])] == ["a.yaml", "b.yml", "c.json"]


def test_every_bad_file_gets_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1\na: 2\n")
    (tmp_path / "b.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(Failed) as caught:
        read([str(tmp_path)])
    assert list(caught.value.lines) == [
        f"{tmp_path}/a.yaml, line 2: the key 'a' is there twice, first on line 1",
        f"{tmp_path}/b.yaml, line 2: byte 8 is not UTF-8",
    ]


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.yaml").open("wb") as file:
        file.truncate(FILE_BYTES + 1)
    with pytest.raises(Failed, match="larger than 10 MB"):
        read([str(tmp_path / "a.yaml")])


@pytest.mark.parametrize("content", ["", "---\n---\n", "# nothing\n"])
def test_no_manifest_at_all_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(Failed, match="no manifest"):
        read([str(tmp_path / "a.yaml")])


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"nowhere\.yaml: no such file or folder"):
        read(["nowhere.yaml"])
