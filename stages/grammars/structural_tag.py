"""Translates structural tags to Lark. A structural tag describes a text in which certain strings (triggers) begin a
part that has its own grammar.

There are two forms of structural tags. In SGLang's older form, a structural tag has a list of structures and a list of
triggers. In xgrammar's form, a structural tag has one format (see `Format`). A format may contain other formats.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct, field

from stages.grammars.lark import OPTIONS, free_text_rule, json_rule, regex_rule, text_rule

# Maximum depth of the parts of a tag.
DEPTH = 32

_NOTHING = '""'


class ConstString(Struct, tag="const_string"):
    """One fixed text."""

    value: str


class JsonSchema(Struct, tag="json_schema"):
    """A JSON text that follows a schema."""

    json_schema: dict[str, Any] | bool | None = None


class AnyText(Struct, tag="any_text"):
    """Any text that does not contain the excluded texts."""

    excludes: list[str] = []


class Regex(Struct, tag="regex"):
    """A text that a regular expression matches."""

    pattern: str


class Sequence_(Struct, tag="sequence"):
    """Parts one after the other."""

    elements: list[Format]


class Or(Struct, tag="or"):
    """One of several parts."""

    elements: list[Format]


class Optional(Struct, tag="optional"):
    """A part, or nothing."""

    content: Format


class Plus(Struct, tag="plus"):
    """A part, once or more often."""

    content: Format


class Star(Struct, tag="star"):
    """A part, any number of times."""

    content: Format


class Repeat(Struct, tag="repeat"):
    """A part, from `min` to `max` times; without a limit if `max` is -1."""

    min: int
    max: int
    content: Format


class Tag(Struct, tag="tag"):
    """A part between two texts."""

    begin: str
    content: Format
    end: str | list[str]

    @property
    def ends(self) -> list[str]:
        return [self.end] if isinstance(self.end, str) else self.end


class TriggeredTags(Struct, tag="triggered_tags"):
    """Any text, in which each trigger begins a tag."""

    triggers: list[str]
    tags: list[Tag]
    at_least_one: bool = False
    stop_after_first: bool = False
    excludes: list[str] = []


class TagsWithSeparator(Struct, tag="tags_with_separator"):
    """Tags with a text between them."""

    tags: list[Tag]
    separator: str
    at_least_one: bool = False
    stop_after_first: bool = False


Format = (
    ConstString
    | JsonSchema
    | AnyText
    | Regex
    | Sequence_
    | Or
    | Optional
    | Plus
    | Star
    | Repeat
    | Tag
    | TriggeredTags
    | TagsWithSeparator
)


class Structure(Struct):
    """A tag in the older form: a JSON text between two texts."""

    begin: str
    end: str
    json_schema: dict[str, Any] | bool | None = field(name="schema", default=None)


class StructuralTag(Struct):
    """A structural tag in one of the two forms."""

    type: str = "structural_tag"
    format: Format | None = None
    structures: list[Structure] = []
    triggers: list[str] = []
    at_least_one: bool = False


def lark_of_tag(source: str, named: Mapping[str, int]) -> str:
    """The grammar of a structural tag.

    Args:
        source: The structural tag as JSON text.
        named: The special tokens that the texts of a tag may contain. Maps the name of each token to its id.

    Raises:
        ValueError: The structural tag is invalid; the message says why.
    """
    try:
        tag = msgspec.json.decode(source, type=StructuralTag)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"it is not a structural tag: {error}") from error
    chosen = tag.format
    if chosen is None:
        tags = [Tag(each.begin, JsonSchema(each.json_schema), each.end) for each in tag.structures]
        chosen = TriggeredTags(tag.triggers, tags, tag.at_least_one)
    writer = _Writer(named)
    rule = writer.rule(chosen, DEPTH, last=True)
    return "\n".join([OPTIONS, f"start: {rule}", *writer.lines])


class _Writer:
    """Writes the formats of a structural tag as Lark rules.

    Free text that ends at a fixed text needs care. A lexer divides the text into terminals, and always takes the
    longest terminal that matches. A terminal for free text would also match the fixed text after it. Therefore, the
    free text and its end are written as one lazy terminal, which is complete as soon as the end has been read. If the
    end is a special token, this is not necessary.

    Args:
        named: The special tokens that a text may contain. Maps the name of each token to its id.

    Attributes:
        lines: The definitions of the rules that other rules refer to.
    """

    def __init__(self, named: Mapping[str, int]) -> None:
        self.lines: list[str] = []
        self._named = named
        self._names = re.compile("|".join(map(re.escape, sorted(named, key=len, reverse=True))) or "(?!)")

    def rule(self, part: Format, depth: int, *, last: bool = False) -> str:
        """A rule for one part.

        Args:
            depth: Maximum depth of the part. A part without inner parts has the depth 1.
            last: Whether nothing can follow the part. If so, the part may end with free text.
        """
        if not depth:
            raise ValueError(f"its formats are nested more than {DEPTH} levels deep")
        if isinstance(part, AnyText | TriggeredTags) and not last:
            raise ValueError(
                f"'{part.__struct_config__.tag}' must be the last format, because nothing shows where it ends; inside "
                "a 'tag', it must be the last format of the tag's content"
            )

        def inner(part: Format, *, last: bool = False) -> str:
            return self.rule(part, depth - 1, last=last)

        match part:
            case ConstString():
                return self._text(part.value)
            case JsonSchema():
                return self._define("json", json_rule(_schema(part.json_schema)))
            case Regex():
                return self._define("REGEX", regex_rule(part.pattern))
            case AnyText():
                return f"{self._free(part.excludes)}?"
            case Sequence_():
                before = [inner(each) for each in part.elements[:-1]]
                return _group(*before, *(inner(each, last=last) for each in part.elements[-1:]))
            case Or():
                return self._one_of(part, depth, last)
            case Optional():
                return f"({inner(part.content, last=last)})?"
            case Plus():
                return f"({inner(part.content)})+"
            case Star():
                return f"({inner(part.content)})*"
            case Repeat():
                if part.min < 0 or (part.max != -1 and part.max < part.min):
                    raise ValueError(
                        "in 'repeat', 'min' must be 0 or more, and 'max' must be -1 (no limit) or at least 'min'"
                    )
                return f"({inner(part.content)}){{{part.min},{'' if part.max == -1 else part.max}}}"
            case Tag():
                return _group(self._text(part.begin), self._ended(part.content, part.ends, depth - 1))
            case TriggeredTags():
                return self._triggered(part, [], depth)
            case TagsWithSeparator():
                return self._separated(part, depth)

    def _one_of(self, part: Or, depth: int, last: bool) -> str:
        texts = [each.value for each in part.elements if isinstance(each, ConstString)]
        if last and len(texts) == len(part.elements) and all(texts) and not any(map(self._names.search, texts)):
            # This is a terminal, because llguidance allows many more alternatives in a terminal than in a rule.
            return self._define("CHOICE", _either([text_rule(text) for text in texts]))
        return _either([self.rule(each, depth - 1, last=last) for each in part.elements])

    def _ended(self, part: Format, ends: Sequence[str], depth: int) -> str:
        """A rule for a part that is followed by one of the texts `ends`."""
        closing = _either([self._text(end) for end in ends])
        if not all(ends):
            return _group(self.rule(part, depth), closing)
        match part:
            case AnyText():
                return self._free_until(ends, part.excludes)
            case TriggeredTags():
                return self._triggered(part, ends, depth)
            case Sequence_(elements=[*first, final]):
                return _group(*(self.rule(each, depth - 1) for each in first), self._ended(final, ends, depth - 1))
            case Or():
                return _either([self._ended(each, ends, depth - 1) for each in part.elements])
            case Optional():
                return _either([self._ended(part.content, ends, depth - 1), closing])
        return _group(self.rule(part, depth), closing)

    def _triggered(self, part: TriggeredTags, ends: Sequence[str], depth: int) -> str:
        """Free text with tags in it. If `ends` is not empty, one of its texts must follow."""
        bodies: dict[str, list[str]] = {}
        for tag in part.tags:
            trigger = max((each for each in part.triggers if tag.begin.startswith(each)), key=len, default="")
            if not trigger:
                raise ValueError(f"none of the 'triggers' is a prefix of {tag.begin!r}, the 'begin' of a tag")
            rest = self._text(tag.begin[len(trigger) :])
            bodies.setdefault(trigger, []).append(_group(rest, self._ended(tag.content, tag.ends, depth - 1)))
        if not bodies:
            raise ValueError("a list of tags is empty")
        excluded = [*part.excludes, *ends]
        later = _either(
            [
                _group(self._free_until([trigger], [*excluded, *part.triggers]), _either(rules))
                for trigger, rules in bodies.items()
            ]
        )
        first = _either([_group(self._text(trigger), _either(rules)) for trigger, rules in bodies.items()])
        final = self._free_until(ends, part.excludes) if ends else f"{self._free([*excluded, *part.triggers])}?"
        if part.stop_after_first:
            closing = _either([self._text(end) for end in ends]) if ends else ""
            return _group(first, closing) if part.at_least_one else _either([_group(later, closing), final])
        return _group(first if part.at_least_one else "", f"{later}*", final)

    def _separated(self, part: TagsWithSeparator, depth: int) -> str:
        tags = _either([self.rule(each, depth - 1) for each in part.tags])
        separator = self._text(part.separator) if part.separator else ""
        several = tags if part.stop_after_first else _group(tags, f"({separator} {tags})*")
        return several if part.at_least_one else f"{several}?"

    def _free_until(self, ends: Sequence[str], excluded: Sequence[str]) -> str:
        """Free text that is followed by one of the texts `ends`. Every text in `ends` is non-empty."""
        return _either([self._free_until_one(end, [*excluded, *ends]) for end in ends])

    def _free_until_one(self, end: str, excluded: Sequence[str]) -> str:
        """Free text that is followed by the text `end`. The free text must not contain the excluded texts, which
        include `end`.
        """
        opening, rest = self._opening(end)
        if opening.startswith('"'):
            head = self._free([each for each in excluded if each != end], least=0)
            opened = self._define("opened[lazy]", f"{head} {opening}")
        else:
            opened = f"{self._free(excluded)}? {opening}"
        return _group(opened, self._text(rest))

    def _opening(self, trigger: str) -> tuple[str, str]:
        """Divides a trigger into its first piece and the rest. The first piece is a special token, or the text before
        the first special token. Returns the rule for the first piece, and the rest as text.
        """
        found = self._names.search(trigger)
        if found is None:
            return text_rule(trigger), ""
        if found.start():
            return text_rule(trigger[: found.start()]), trigger[found.start() :]
        return self._token(found[0]), trigger[found.end() :]

    def _text(self, text: str) -> str:
        """A fixed text. The names of special tokens in it are replaced by the tokens."""
        rules, begin = [], 0
        for found in self._names.finditer(text):
            rules += [text_rule(text[begin : found.start()])] if found.start() > begin else []
            rules.append(self._token(found[0]))
            begin = found.end()
        rules += [text_rule(text[begin:])] if begin < len(text) else []
        return _group(*rules)

    def _token(self, name: str) -> str:
        return f"<[{self._named[name]}]>"

    def _free(self, excluded: Sequence[str], least: int = 1) -> str:
        return self._define("FREE", free_text_rule(excluded, least))

    def _define(self, prefix: str, rule: str) -> str:
        """Define a rule or, if its name is in capitals, a terminal. Returns the name."""
        prefix, _, options = prefix.partition("[")
        name = f"{prefix}_{len(self.lines)}"
        self.lines.append(f"{name}{'[' + options if options else ''}: {rule}")
        return name


def _group(*rules: str) -> str:
    """The given rules one after the other. An empty rule is left out."""
    return f"({' '.join(filter(None, rules)) or _NOTHING})"


def _either(rules: Sequence[str]) -> str:
    if not rules:
        raise ValueError("a list of formats is empty")
    return f"({' | '.join(dict.fromkeys(rules))})"


def _schema(schema: Mapping[str, Any] | bool | None) -> Mapping[str, Any]:
    if schema is False:
        raise ValueError("a JSON schema is false, so it allows no value")
    return schema if isinstance(schema, Mapping) else {}
