"""The page shows the Markdown of an answer while the answer arrives, whatever text a model writes."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.clients.playground.page import OpenPage

if TYPE_CHECKING:
    from playwright.sync_api import Route

Open = Callable[..., OpenPage]
Picture = Callable[[OpenPage, str], Path]

ANSWER = """\
# Cars
There are **three** cars, and `in_stock` counts _only_ these:
- a red one
- a blue one
  1. with ~~two~~ four doors

| colour | cars |
|---|---|
| red | 1 |

```python
print("<b>three</b>")
```
> See [the manual](https://cars.example/manual) or https://cars.example.
"""
HOSTILE = """\
<script>parent.caught = 1</script><img src="https://evil.example/a.png" onerror="caught = 1">
[run](javascript:caught=1) [data](data:text/html,x) ![picture](https://evil.example/b.png) <b onclick=x>bold</b>
"""
CODE = '<pre tabindex="0"><code>{}</code></pre>'
LINK = '<a href="{0}" title="{0}" target="_blank" rel="noopener noreferrer nofollow">{1}</a>'

# Shows a text that arrives in pieces, and returns the result as HTML.
_SHOW = """async (pieces) => {
  const { Markdown } = await import("/playground/markdown.js");
  const shown = document.createElement("div");
  const markdown = new Markdown(shown);
  for (const piece of pieces) markdown.write(piece);
  markdown.end();
  shown.normalize();
  return shown.innerHTML;
}"""
# Shows a text that has not ended yet, and returns the result as HTML.
_SHOW_OPEN = """async (text) => {
  const { Markdown } = await import("/playground/markdown.js");
  const shown = document.createElement("div");
  new Markdown(shown).write(text);
  await new Promise(requestAnimationFrame);
  shown.normalize();
  return shown.innerHTML;
}"""
# Returns the number of letters that are drawn while a text arrives in pieces of four letters. Ten pieces arrive between
# two frames of the screen.
_DRAWN = """async (text) => {
  const { Markdown } = await import("/playground/markdown.js");
  let draw = null;
  window.requestAnimationFrame = (act) => { draw = act; };
  const shown = document.createElement("div");
  const markdown = new Markdown(shown);
  let drawn = 0;
  const count = (changes) => {
    for (const { addedNodes } of changes) for (const node of addedNodes) drawn += node.textContent.length;
  };
  const observer = new MutationObserver(count);
  observer.observe(shown, { childList: true, subtree: true });
  for (let i = 0; i < text.length; i += 4) {
    markdown.write(text.slice(i, i + 4));
    if (i % 40 === 0) draw?.();
    count(observer.takeRecords());
  }
  markdown.end();
  count(observer.takeRecords());
  return drawn;
}"""


def writing(text: str) -> Callable[[Route], None]:
    """Makes the model write this text. The demo model does not know Markdown, but a grammar allows only this text."""

    pattern = re.sub(r"[^\w\s]", lambda found: rf"\x{{{ord(found[0]):x}}}", text)

    def change(route: Route) -> None:
        body = json.loads(route.request.post_data or "")
        route.continue_(post_data=json.dumps(body | {"regex": pattern, "max_tokens": 1000}))

    return change


def ask_for(page: OpenPage, text: str) -> None:
    """Let the model write `text`, without speech, and wait until the answer has ended."""
    page.tab.get_by_label("Speak the answer").click()
    page.tab.route("**/v1/chat/completions", writing(text))
    page.ask("Hello")
    assert page.answer()["text"] == text


def test_an_answer_in_markdown_is_shown_and_its_source_is_copied(open_page: Open, picture: Picture) -> None:
    page = open_page()
    ask_for(page, ANSWER)
    picture(page, "markdown")
    answer = page.tab.locator(".answer")
    assert answer.get_by_role("heading").inner_text() == "Cars"
    assert answer.locator("li").all_inner_texts() == [
        "a red one",
        "a blue one\n\nwith two four doors",
        "with two four doors",
    ]
    assert answer.get_by_role("cell").all_inner_texts() == ["red", "1"]
    assert answer.locator("pre").inner_text() == 'print("<b>three</b>")'
    assert answer.get_by_role("link", name="the manual").get_attribute("href") == "https://cars.example/manual"
    page.tab.get_by_role("button", name="Copy the answer").click()
    assert page.tab.evaluate("navigator.clipboard.readText()") == ANSWER


def test_hostile_text_of_a_model_stays_text(open_page: Open, picture: Picture) -> None:
    page = open_page()
    ask_for(page, HOSTILE)
    picture(page, "hostile")
    shown = page.tab.locator(".answer .text")
    assert shown.inner_text().startswith("<script>parent.caught = 1</script><img src=")
    assert "<b onclick=x>bold</b>" in shown.inner_text()
    assert shown.locator("img, script, b").count() == 0
    addresses = [link.get_attribute("href") for link in shown.locator("a").all()]
    assert addresses == ["https://evil.example/a.png", "https://evil.example/b.png"], (
        "links, which nothing has followed"
    )
    assert page.tab.evaluate("window.caught") is None


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a *b* __c__ ~~e~~ `f*`", "<p>a <em>b</em> <strong>c</strong> <del>e</del> <code>f*</code></p>"),
        ("***a***", "<p><strong><em>a</em></strong></p>"),
        ("snake_case_name, 5 * 3 * 2, $5 ~ $6, **unclosed", "<p>snake_case_name, 5 * 3 * 2, $5 ~ $6, **unclosed</p>"),
        ("**重要。**然后", "<p><strong>重要。</strong>然后</p>"),
        (r"\*a\* \[b\]", "<p>*a* [b]</p>"),
        ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
        ("### a\n# b", "<h2>a</h2><h2>b</h2>"),
        ("The year was\n2019. Warm.", "<p>The year was\n2019. Warm.</p>"),
        ("3. a\n4. b", '<ol start="3"><li><p>a</p></li><li><p>b</p></li></ol>'),
        ("- [ ] a\n- [x] b", "<ul><li><p>☐ a</p></li><li><p>☑ b</p></li></ul>"),
        ("- a\n  ```\n  b\n    c\n  ```\nd", "<ul><li><p>a</p>" + CODE.format("b\n  c") + "</li></ul><p>d</p>"),
        ("```\n*a*\n\n- b", '<pre tabindex="0"><code>*a*\n\n- b</code></pre>'),
        ("> a\nb\n\nc\n***", "<blockquote><p>a\nb</p></blockquote><p>c</p><hr>"),
        ("| a\nb", "<p>| a\nb</p>"),
        ("(see https://a.b/c.)", f"<p>(see {LINK.format('https://a.b/c', 'https://a.b/c')}.)</p>"),
        ("[a](https://b.c/d_(e))", f"<p>{LINK.format('https://b.c/d_(e)', 'a')}</p>"),
        ("[a](JavaScript:x) [b](/c) [d](//e.f) [g](java\tscript:x)", "<p>a b d [g](java    script:x)</p>"),
        ("![a](data:image/png;base64,AAAA)", "<p>picture: a</p>"),
        ("> " * 30 + "a", f"{'<blockquote>' * 10}<p>{'&gt; ' * 20}a</p>{'</blockquote>' * 10}"),
    ],
)  # fmt: skip
def test_each_kind_of_mark(open_page: Open, text: str, html: str) -> None:
    assert open_page(wait=False).tab.evaluate(_SHOW, [text]) == html


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a **b", "<p>a <strong>b</strong></p>"),
        ("a **b *", "<p>a <strong>b </strong></p>"),
        ("a `b", "<p>a <code>b</code></p>"),
        ("a [b](https://c", "<p>a b</p>"),
        ("a\n1.", "<p>a</p>"),
        ("| a | b |\n|--", "<p></p>"),
    ],
)
def test_what_is_not_complete_yet_already_looks_as_it_will(open_page: Open, text: str, html: str) -> None:
    assert open_page(wait=False).tab.evaluate(_SHOW_OPEN, text) == html


def test_pieces_of_any_length_give_the_same_and_only_known_elements(open_page: Open) -> None:
    marks = ["a", "b ", " ", "\n", "\n\n", "*", "**", "_", "`", "```", "- ", "1. ", "# ", "> ", "|", "|---|", "[", "]("]
    marks += ["http://x.y", "javascript:", ")", "!", "<b>", "    ", "\\", "~~", "---", "[ ]", "2. ", "\t", "重", "&lt;"]
    draw = random.Random(7)
    page = open_page(wait=False)
    seen: set[str] = set()
    for _ in range(300):
        text = "".join(draw.choices(marks, k=draw.randrange(40)))
        cuts = sorted(draw.choices(range(len(text) + 1), k=draw.randrange(9)))
        pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        whole = page.tab.evaluate(_SHOW, [text])
        assert page.tab.evaluate(_SHOW, pieces) == page.tab.evaluate(_SHOW, list(text)) == whole, pieces
        seen |= set(re.findall(r"<(\w+)", whole)) | {"href=" + each for each in re.findall(r'href="(\w+:)', whole)}
    known = {"p", "em", "strong", "del", "code", "pre", "ul", "ol", "li", "blockquote", "hr", "h2", "a", "href=http:"}
    assert {"p", "em", "code", "li", "a"} <= seen <= known | {"div", "table", "thead", "tbody", "tr", "th", "td"}


@pytest.mark.parametrize(
    "unit",
    ["Some **bold** words.\n\n", "words and *more* ", "**words ", "- item\n", "|a|b|\n|-|-|\n", "` `` ", "x", "[a](b "],
)
def test_a_long_answer_is_drawn_in_proportion_to_its_length(open_page: Open, unit: str) -> None:
    page = open_page(wait=False)
    short, long = (page.tab.evaluate(_DRAWN, (unit * size)[:size]) for size in (10_000, 40_000))
    assert long < 6 * short
