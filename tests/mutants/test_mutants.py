"""The mutants' tool, tested on a project of two files. All mutants of this project can be made."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench.process import ROOT
from tests.mutants.mutant import Mutant, MutantError, read, sample
from tests.mutants.record import faults, page, record_of
from tests.mutants.trial import Verdict, prove_baseline, tried

FILES = sorted((ROOT / "tests" / "mutants").glob("*.toml"))

CODE = """\
def area(width, height):
    return width * height


def unused():
    return 1
"""
TESTS = """\
from shape import area


def test_area_is_the_product():
    assert area(2, 3) == 6


def test_area_of_nothing_is_nothing():
    assert area(0, 3) == 0
"""
IN_TOML = """
[[mutant]]
says = "the sum"
file = "shape.py"
was = "width * height"
becomes = "width + height"
tests = ["test_shape.py"]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "shape.py").write_text(CODE)
    (root / "test_shape.py").write_text(TESTS)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return root


def mutant(was: str = "width * height", becomes: str = "width + height", **more: Any) -> Mutant:
    given = {"says": "a bug", "file": "shape.py", "tests": ("test_shape.py",)} | more
    return Mutant(was=was, becomes=becomes, **given)


def test_a_bug_that_a_test_sees_is_caught_by_that_test(project: Path) -> None:
    (verdict,) = tried(project, [mutant()])
    assert verdict.caught
    assert verdict.by == "test_shape.py::test_area_is_the_product"


def test_a_bug_that_no_test_sees_is_missed(project: Path) -> None:
    verdicts = tried(project, [mutant("return 1", "return 2"), mutant()], jobs=2)
    assert [v.caught for v in verdicts] == [False, True]


def test_each_bug_meets_the_code_without_the_others_and_the_checkout_stays(project: Path) -> None:
    # Same length and within a second: Python would reuse the compiled file of the previous bug.
    swapped = mutant("width * height", "width * width_")
    harmless = mutant("width * height", "height * width", harmless="products commute")
    verdicts = tried(project, [mutant(), swapped, harmless])
    assert [v.caught for v in verdicts] == [True, True, False]
    assert (project / "shape.py").read_text() == CODE
    assert {p.name for p in project.iterdir()} == {".git", "shape.py", "test_shape.py"}


def test_a_bug_that_keeps_tests_from_being_imported_is_caught(project: Path) -> None:
    (verdict,) = tried(project, [mutant("def area(width, height)", "def aria(width, height)")])
    assert verdict.caught
    assert verdict.by == "test_shape.py"


def test_tests_of_interpreted_kernels_run_in_the_interpreter_and_others_do_not(
    project: Path,
) -> None:
    # Each fails under the other's setting.
    kinds = {"test_plain.py": "not in", "tests/interpreted/test_kernel.py": "in"}
    (project / "tests" / "interpreted").mkdir(parents=True)
    for name, relation in kinds.items():
        (project / name).write_text(
            "import os\nfrom shape import area\n\n\ndef test_it():\n"
            f"    assert 'TRITON_INTERPRET' {relation} os.environ and area(2, 3) == 6\n"
        )
    both = mutant("return 1", "return 2", tests=tuple(kinds))
    prove_baseline(project, [both], 1)
    assert not tried(project, [both])[0].caught
    (verdict,) = tried(project, [mutant(tests=("tests/interpreted/test_kernel.py",))])
    assert verdict.by == "tests/interpreted/test_kernel.py::test_it"


@pytest.mark.parametrize("was", ["width / height", "width"])
def test_a_text_that_does_not_stand_in_the_file_once_is_refused(project: Path, was: str) -> None:
    with pytest.raises(MutantError, match=r"must stand in shape\.py once"):
        tried(project, [mutant(was)])


def test_tests_that_are_not_there_say_nothing_of_a_bug(project: Path) -> None:
    with pytest.raises(MutantError, match="status 4"):
        tried(project, [mutant(tests=("test_shape.py::test_volume",))])


def test_nothing_is_concluded_where_tests_fail_without_a_bug(project: Path) -> None:
    prove_baseline(project, [mutant()], 1)
    (project / "shape.py").write_text(CODE.replace("*", "-"))
    with pytest.raises(MutantError, match=r"(?s)status 1.*1 failed|2 failed"):
        prove_baseline(project, [mutant()], 1)


def verdicts(project: Path, caught: int, missed: int, **more: Any) -> dict[str, Any]:
    kinds = [True] * caught + [False] * missed
    chosen = [Verdict(mutant(**more), c, "a_test" if c else "", 1.0) for c in kinds]
    return record_of(project, chosen, there=2 * len(chosen))


def test_nine_of_ten_bugs_must_be_caught(project: Path) -> None:
    assert faults(verdicts(project, 9, 1)) == []
    assert faults(verdicts(project, 8, 1)) == ["8 of 9 caught, expected at least 90%"]


def test_a_bug_that_a_review_named_must_be_caught(project: Path) -> None:
    (line,) = faults(verdicts(project, 9, 1, review=True))
    assert line == "missed, though a review had named it: a bug (shape.py)"


def test_what_a_test_catches_is_not_harmless(project: Path) -> None:
    assert faults(verdicts(project, 0, 5, harmless="it commutes")) == []
    (line,) = faults(verdicts(project, 1, 0, harmless="it commutes"))
    assert line == "called harmless, but a_test catches it: a bug (shape.py)"


def test_the_page_counts_bugs_and_names_what_was_missed(project: Path) -> None:
    text = page(verdicts(project, 3, 1))
    assert "Of 8 small changes to the code 4 were tried." in text
    assert "catch 3 of 4 bugs (75%)" in text
    missed = text[text.index("## Missed") : text.index("## Bugs that")]
    assert missed.count("| a bug | shape.py:2 |") == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('tests = ["test_shape.py"]', "lacks tests"),
        ('file = "shape.py"', "lacks file"),
    ],
)
def test_a_mutant_without_a_needed_key_is_refused(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "a.toml").write_text(IN_TOML.replace(line, ""))
    with pytest.raises(MutantError, match=reason):
        read(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        ("harmles = 'it commutes'", "has 'harmles', expected says"),
        ("review = 'yes'", "review must be a bool"),
    ],
)
def test_an_unknown_key_or_another_type_is_refused(tmp_path: Path, added: str, reason: str) -> None:
    (tmp_path / "a.toml").write_text(IN_TOML + added)
    with pytest.raises(MutantError, match=reason):
        read(tmp_path / "a.toml")


def test_a_file_of_mutants_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(IN_TOML + IN_TOML.replace("the sum", "again"))
    assert read(tmp_path / "a.toml") == [mutant(says="the sum"), mutant(says="again")]


def test_a_sample_holds_all_that_a_review_named_and_each_nth_of_the_others() -> None:
    bugs = [mutant(says=str(n), review=n in (1, 4)) for n in range(9)]
    assert [m.says for m in sample(bugs, 3)] == ["0", "1", "4", "5", "8"]
    assert sample(bugs, 1) == bugs


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_mutant_of_this_project_can_be_put_in(file: Path) -> None:
    for each in read(file):
        each.mutated(ROOT)
        for test in each.tests:
            assert (ROOT / test.split("::")[0]).exists(), f"{each.says!r} names {test}"
