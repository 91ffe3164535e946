"""The configuration reference agrees with the code."""

from __future__ import annotations

from write_configuration_reference import MARK, PAGE, whole


def test_page_is_what_the_code_says() -> None:
    assert PAGE.read_text() == whole(PAGE.read_text()), "run scripts/write_configuration_reference.py"


def test_page_that_has_no_second_part_yet_gets_one() -> None:
    page = whole("# Configuration\n")
    assert page.startswith(f"# Configuration\n{MARK}\n## Flags\n")
    assert "| `max_items` | whole number ≥ 1 | `64` | Maximum number of media items in one request. |" in page
    assert "`SGL_OMNI_GPU_THINKER`" in page
