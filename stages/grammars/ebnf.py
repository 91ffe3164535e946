"""Translates EBNF to Lark."""

from __future__ import annotations

from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

from stages.grammars.lark import OPTIONS

_DIRECTIVE = "%llguidance"


def lark_of_ebnf(source: str) -> str:
    """Returns rules in Lark. The rules in `source` are in EBNF (``root ::= "yes" | "no"``) or in Lark
    (``start: "yes" | "no"``).

    Raises:
        ValueError: The rules are invalid; the message says why.
    """
    if _DIRECTIVE in source:
        raise ValueError(f"'{_DIRECTIVE}' is not allowed")
    if "::=" not in source:
        return f"{OPTIONS}\n{source}"
    try:
        translated = gbnf_to_lark(source)
    except RecursionError as error:
        raise ValueError("its groups are nested too deeply") from error
    except GbnfToLarkError as error:
        raise ValueError(f"it is not EBNF: {error}") from error
    except Exception as error:  # the translator raises a plain Exception for missing rules
        raise ValueError(str(error)) from error
    return f"{OPTIONS}\n" + "\n".join(line for line in translated.splitlines() if not line.startswith(_DIRECTIVE))
