"""Reads the voices of a checkpoint, and chooses the voice that a request asks for."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from gateway.api.schema import ChatCompletionRequest
from omni_pipeline.errors import OmniError, StartupError, bad_request

_PREFERRED = "ethan"  # the default voice of the released model
_NO_MATTER = "default"


class _TalkerListing(Struct):
    speaker_id: dict[str, int] | None = None


class _VoiceListing(Struct):
    """The part of ``config.json`` that says whether the model speaks, and that lists its voices."""

    enable_audio_output: bool = True
    talker_config: _TalkerListing | None = None


class Voices(Struct, frozen=True):
    """Names of the voices, in lower case and in the checkpoint's order, and the default voice."""

    names: tuple[str, ...]
    default: str

    def choose(self, request: ChatCompletionRequest) -> str:
        """The voice that `request` specifies in `audio.voice`, `voice` or `speaker`, in any letter case; the default
        voice if `request` specifies no voice.

        Raises:
            OmniError: 400 if there is no such voice, or if two fields specify different voices.
        """
        asked = {
            "audio.voice": request.audio.voice if request.audio else None,
            "voice": request.voice,
            "speaker": request.speaker,
        }
        chosen: tuple[str, str] | None = None
        for field, name in asked.items():
            if name is None or name.lower() == _NO_MATTER:
                continue
            voice = self._known(name, field)
            if chosen is not None and chosen[1] != voice:
                raise _invalid(
                    field, f"this voice differs from the voice in '{chosen[0]}'; send only one of these two fields"
                )
            chosen = chosen or (field, voice)
        return self.default if chosen is None else chosen[1]

    def find(self, name: str | None, field: str) -> str:
        """The voice with this name, in any letter case; the default voice for None or ``default``. Raises OmniError
        (400) if there is no such voice.
        """
        return self.default if name is None or name.lower() == _NO_MATTER else self._known(name, field)

    def _known(self, name: str, field: str) -> str:
        if name.lower() not in self.names:
            known = ", ".join(f"{voice} (default)" if voice == self.default else voice for voice in self.names)
            raise _invalid(field, f"there is no voice '{name[:64]}'; known: {known}")
        return name.lower()


def read_voices(checkpoint: Path) -> Voices | None:
    """The voices that ``config.json`` in a checkpoint's directory lists; None for a model that does not speak.

    Raises:
        StartupError: if the file cannot be read, or does not list the voices in the expected form.
    """
    path = checkpoint / "config.json"
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_VoiceListing)
    except OSError as error:
        raise StartupError(f"Cannot read {path}: {error.strerror}.") from error
    except msgspec.MsgspecError as error:
        raise StartupError(f"{path} does not list the voices in the expected form: {error}.") from error
    speakers = config.talker_config and config.talker_config.speaker_id
    if not config.enable_audio_output or not speakers:
        return None
    names = tuple(name.lower() for name in speakers)
    return Voices(names, _PREFERRED if _PREFERRED in names else names[0])


def _invalid(field: str, reason: str) -> OmniError:
    return bad_request(f"Invalid '{field}': {reason}.", param=field, code="invalid_value")
