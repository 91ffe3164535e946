"""The report of a GPU check can be published: it is a complete file at any time, is short enough, and contains no
secrets.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import verify_on_gpu
from gpu_check import compiled, machine
from gpu_check.report import MOST_CHARACTERS, Check, Report, block, quoted, shortened, table, took
from gpu_check.scrub import clean, known

from tests.conftest import ROOT


class Clock:
    """A clock that shows the time that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def report(tmp_path: Path, clock: Clock) -> Report:
    return Report(tmp_path / "report.md", "x", clock=clock)


def first_line(report: Report) -> str:
    """The line under the title in the report's file."""
    return report.path.read_text().splitlines()[2]


def test_the_first_line_says_whether_everything_passed_and_how_long_it_took(report: Report, clock: Clock) -> None:
    report.add("", "", Check("a", True), Check("b", None))
    clock.now = 3 * 3600
    report.finish()
    assert first_line(report) == (
        "**Everything that was run passed**, in 3 h 0 min: 1 checks passed, 0 failed, 1 only reported."
    )
    report.add("", "", Check("c", False, "2.5", "1"))
    report.finish()
    assert first_line(report).startswith("**Something failed**, in 3 h 0 min: 1 checks passed, 1 failed")
    assert "| c | **FAIL** | 2.5 | 1 |" in report.path.read_text()


def test_nothing_judged_is_no_success(report: Report) -> None:
    report.add("", "", Check("a", None))
    report.finish()
    assert not report.passed
    assert first_line(report).startswith("**Nothing was judged**")


def test_while_it_runs_the_file_says_so_and_in_which_step(report: Report, clock: Clock) -> None:
    report.add("First", "words", Check("a", True))
    report.begin("layout split")
    clock.now = 60
    report.write()
    assert first_line(report).startswith("**It has not ended**: 60 s so far, current step: layout split.")
    report.stop("interrupted")
    assert first_line(report).startswith("**It was stopped** after 60 s (interrupted, during: layout split).")
    assert not report.passed, "what has not been looked at may be wrong"
    assert "<details><summary>First (0 s)</summary>\n\nwords\n\n</details>" in report.path.read_text()
    assert list(report.path.parent.iterdir()) == [report.path]


def test_steps_say_how_much_time_there_is(report: Report, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    report.minutes = 90
    clock.now = 14 * 60
    report.begin("layout split")
    assert capsys.readouterr().out == "── layout split  (after 14 min, of 90 at most)\n"


@pytest.mark.parametrize("sections", [1, 40, 200])
def test_it_is_never_longer_than_an_issue(sections: int, report: Report) -> None:
    report.describe(table(("", ""), [("GPU", "H100")]), Check("the driver answers", True))
    for number in range(sections):
        text = block("\n".join(f"line {line} of {number}" for line in range(20_000 // sections)))
        report.add(f"Section {number}", f"{text}\n\nThe end.", Check(f"check {number}", True, "fine"))
    written = report.path.read_text()
    assert len(written) <= MOST_CHARACTERS
    assert written.count("<details>") == written.count("</details>") == sections
    assert written.count("```") % 2 == 0
    assert all(f"| check {number} | pass | fine |" in written for number in range(sections))
    assert "characters are left out here" in written


def test_what_fits_is_not_shortened_and_short_sections_stay_whole_beside_long_ones(report: Report) -> None:
    report.add("Short", "few words")
    assert "left out" not in report.markdown()
    report.add("Long", "words\n" * 30_000)
    assert "<details><summary>Short (0 s)</summary>\n\nfew words\n\n</details>" in report.markdown()


def test_a_shortened_block_is_closed() -> None:
    cut = shortened(block("word\n" * 1000), 500)
    assert len(cut) <= 500
    assert cut.count("```") == 2
    assert "*(shortened: " in cut


def test_words_of_a_model_mean_nothing_in_the_report() -> None:
    assert quoted("`a`") == "`'a'`"
    assert table(("x",), [("a|b\nc</details>",)]).endswith("| a\\|b c&lt;/details> |")
    assert block("a\n") == "```text\na\n```"
    assert block("```\na") == "````text\n```\na\n````"


def test_durations_are_words() -> None:
    assert [took(seconds) for seconds in (3.2, 119, 600, 7300)] == ["3 s", "119 s", "10 min", "2 h 2 min"]


SECRETS = {"HF_TOKEN": "hf-of-this-machine", "API_KEY": "short", "PATH": "/usr/bin", "DB_PASSWORD": "correct horse"}


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("/home/anna/models/x.yaml and /Users/ben/y", "~/models/x.yaml and ~/y"),
        ("/root/.cache/sglang, /root", "~/.cache/sglang, ~"),
        ("/data/root/file stays, and so does groot", "/data/root/file stays, and so does groot"),
        ("gpu07.cluster.example is gpu07", "HOST is HOST"),
        ("run by anna_b on gpu07-not-this", "run by USER on gpu07-not-this"),
        ("token=hf-of-this-machine; correct horse", "token=[removed]; [removed]"),
        ("a short word, /usr/bin", "a short word, /usr/bin"),
        ("Authorization: Bearer abc.def-1234", "Authorization: Bearer [removed]"),
        ("hf_abcdefghijkl sk-proj-abcdefghij", "[removed] [removed]"),
        ("https://me:pass@registry.example/x", "https://[removed]@registry.example/x"),
        (f"{ROOT}/tests/x.py", "./tests/x.py"),
    ],
)
def test_homes_hosts_users_and_keys_are_taken_out(text: str, cleaned: str) -> None:
    assert clean(text, known(SECRETS, ("gpu07", "gpu07.cluster.example"), "anna_b")) == cleaned


def test_names_that_say_nothing_stay() -> None:
    assert "localhost" not in known({}, ("localhost", "localhost"), "root")
    assert "root" not in known({}, ("localhost", "localhost"), "root")


def test_the_whole_report_is_cleaned(report: Report) -> None:
    report.describe(f"{ROOT}/a")
    report.add(f"In {ROOT}/b", f"{ROOT}/c", Check("d", True, f"{ROOT}/e"))
    assert str(ROOT) not in report.path.read_text()


def test_what_was_compiled_meanwhile_is_named(tmp_path: Path) -> None:
    places = compiled.caches({"HOME": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path / "t")})
    before = compiled.kernels(places)
    for file in ("t/abc/rms_norm.cubin", "t/abc/rms_norm.json", ".cache/sglang/jit/sm90a/norm/k1/norm.so"):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert compiled.news(before, compiled.kernels(places)) == "SGLang 1 (norm); Triton 1 (rms_norm)"
    assert compiled.news(compiled.kernels(places), compiled.kernels(places)) == ""


def test_an_error_of_the_check_itself_leaves_a_report_with_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> bool:
        raise RuntimeError("the driver bit me")

    monkeypatch.setattr(machine, "look", fail)
    path = tmp_path / "report.md"
    with pytest.raises(RuntimeError):
        verify_on_gpu.main(["--device", "cpu", "--report", str(path)])
    written = path.read_text()
    assert "**It was stopped**" in written.splitlines()[2]
    assert "RuntimeError: the driver bit me, during: the machine" in written.splitlines()[2]
    assert "Traceback" in written


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_its_tests_and_leaves_a_report(sent: signal.Signals, tmp_path: Path) -> None:
    """The signal arrives in the middle of a test that would take ten minutes."""
    test, begun, path = tmp_path / "test_it.py", tmp_path / "begun", tmp_path / "report.md"
    test.write_text(
        "import time\n"
        "def test_quick(): pass\n"
        f"def test_slow():\n    open({str(begun)!r}, 'w').close()\n    time.sleep(600)\n"
    )
    command = [sys.executable, ROOT / "scripts" / "verify_on_gpu.py", "--device", "cpu", "--report", path]
    process = subprocess.Popen([*command, "--equality", test], start_new_session=True, stderr=subprocess.PIPE)
    while not begun.exists():
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == verify_on_gpu.INTERRUPTED, said
    written = path.read_text()
    assert "(interrupted, during: answers, float32)" in written.splitlines()[2]
    assert "| GPU | told | this run is on the CPU |" in written
    assert "| answers, float32 | told | 1 of 2 tests passed |" in written, "what had been found until then"
    assert subprocess.run(["pgrep", "-f", str(test)], capture_output=True).returncode == 1, "nothing is left running"
