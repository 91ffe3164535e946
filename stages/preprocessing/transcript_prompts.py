"""Makes the conversation that asks the model to transcribe or translate a piece of a recording."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from omni_pipeline.errors import OmniError, bad_request
from stages.messages import MediaRef, Recording, Text, Turn
from stages.options import PreprocessingOptions

# If a client names an unknown language, the error message quotes at most this number of characters of the name.
_QUOTED = 40


class TranscriptPrompt(Struct, frozen=True):
    """The prompt for the pieces of one recording.

    Attributes:
        turns: The conversation; media item 0 is the piece.
        language: English name of the language of the resulting text; None if it is not known.
    """

    turns: list[Turn]
    language: str | None


def transcript_prompt(recording: Recording, options: PreprocessingOptions) -> TranscriptPrompt:
    """The prompt for a recording: the sound, and after it the model's prompt for the task.

    If the client has sent a text, it becomes a system message. So the prompt that the model's authors recommend stays
    as it is.

    Raises:
        OmniError: 400 for an unknown language.
    """
    code = name = target = None
    if recording.language is not None:
        code, name = _language(recording.language, "language", options.transcript_languages)
    if recording.task == "translate":
        template = options.translate_prompt if name is None else options.translate_language_prompt
        _, target = _language(recording.target, "to_language", options.transcript_languages)
        text = template.replace("{target}", target)
    else:
        target = name
        text = options.transcribe_prompt
        if code is not None:
            text = options.transcribe_prompts.get(code, options.transcribe_language_prompt)
    turns = [Turn("user", [MediaRef(0), Text(text.replace("{language}", name or ""))])]
    if recording.context:
        turns.insert(0, Turn("system", [Text(recording.context)]))
    return TranscriptPrompt(turns, target)


def _language(given: str, param: str, known: Mapping[str, str]) -> tuple[str, str]:
    """Code and name of the language that a client names. ``en``, ``en-US`` and ``English`` name the same language."""
    wanted = given.strip().lower()
    code = wanted.replace("_", "-").partition("-")[0]
    for each, name in known.items():
        if wanted == name.lower() or code == each.lower():
            return each, name
    raise _unknown(given, param, known)


def _unknown(given: str, param: str, known: Mapping[str, str]) -> OmniError:
    codes = ", ".join(sorted(known))
    return bad_request(
        f"Invalid '{param}': '{given[:_QUOTED]}' is not a language of this model; known languages: {codes}.",
        param=param,
        code="invalid_value",
    )
