"""Reads the items and the sound that a client sends. Checks the items, and loads their media."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from gateway.api.conversion import MediaSource
from gateway.api.field_errors import invalid
from gateway.api.tools import arguments_of_call
from gateway.bodies.json_body import LongString
from gateway.media.base64_text import Base64Decoder
from gateway.media.loading import MediaLoader
from gateway.realtime.items.conversation import (
    Call,
    CallOutput,
    Content,
    Item,
    Message,
    PictureContent,
    SoundContent,
    SpokenContent,
    TextContent,
    new_id,
)
from gateway.realtime.items.heard_words import SpokenWords
from gateway.realtime.protocol import items as sent
from gateway.realtime.sounds.input_buffer import pcm_of, sound_of
from gateway.realtime.sounds.sound_formats import SoundFormat
from omni_pipeline.config.schema import Limits
from omni_pipeline.errors import bad_request
from stages.messages import Media

Hold = Callable[[int], None]

_ALLOWED: dict[str, tuple[type, ...]] = {
    "user": (*sent.TEXT_PARTS, sent.InputAudioPart, sent.InputImagePart),
    "assistant": (*sent.TEXT_PARTS, *sent.SPOKEN_PARTS),
    "system": sent.TEXT_PARTS,
    "developer": sent.TEXT_PARTS,
}


class ItemReader:
    """Reads the items and the sound of one client.

    Args:
        loader: Loads media within the media policy.
        client: Name of the client. The limits for each client use this name.
        limits: Limits on the text of items.
        in_thread: Calls a function in a thread that clients share, and returns its result.
    """

    def __init__(
        self,
        loader: MediaLoader,
        client: str,
        limits: Limits,
        in_thread: Callable[[Callable[[], SoundContent]], Awaitable[SoundContent]],
    ) -> None:
        self._loader = loader
        self._client = client
        self._limits = limits
        self._in_thread = in_thread

    async def sound(self, audio: str, strings: Mapping[str, LongString], param: str, hold: Hold) -> bytes:
        """The bytes of a sound that is sent as base64.

        Args:
            audio: The base64, or a marker. `strings` has the base64 for each marker.
            hold: Called with the number of bytes before the bytes are kept.

        Raises:
            OmniError: 400 if the text is not base64; any error that `hold` raises.
        """
        if audio in strings:
            [medium] = await self._load(MediaSource("audio", strings[audio], param, form="base64"), hold)
            return bytes(medium.data.buffer())
        decoder = Base64Decoder()
        try:
            data = decoder.decode(audio) + decoder.finish()
        except ValueError as error:
            raise bad_request(f"'{param}' is not valid base64.", param=param, code="invalid_base64") from error
        hold(len(data))
        return data

    async def item(
        self, item: sent.Item, strings: Mapping[str, LongString], sound_format: SoundFormat, param: str, hold: Hold
    ) -> Item:
        """The item that a client describes.

        Args:
            strings: The long strings of the event.
            sound_format: The format of the item's sounds.
            param: Path of the item in the event.
            hold: Called with a number of bytes before these bytes are kept.

        Raises:
            OmniError: 400 if a part of the item is wrong, with the path of this part; any error that `hold` raises.
        """
        item_id = item.id or new_id("item")
        match item:
            case sent.FunctionCallItem():
                arguments = arguments_of_call(item.arguments, f"{param}.arguments", self._limits)
                return Call(item_id, item.call_id or new_id("call"), item.name, arguments)
            case sent.FunctionCallOutputItem():
                return CallOutput(item_id, item.call_id, item.output)
        content: list[Content] = []
        for index, part in enumerate(item.content):
            path = f"{param}.content[{index}]"
            if not isinstance(part, _ALLOWED[item.role]):
                raise invalid(f"{path}.type", f"a message with the role '{item.role}' cannot have a part of this type")
            content.append(await self._content(part, strings, sound_format, path, hold))
        role = "system" if item.role == "developer" else item.role
        return Message(item_id, role, content)

    async def _content(
        self, part: sent.Part, strings: Mapping[str, LongString], sound_format: SoundFormat, path: str, hold: Hold
    ) -> Content:
        match part:
            case sent.InputAudioPart():
                data = await self.sound(part.audio, strings, f"{path}.audio", hold)
                return await self._in_thread(partial(_sound, data, sound_format, f"{path}.audio", part.transcript))
            case sent.InputImagePart():
                address = strings.get(part.image_url, part.image_url)
                [medium] = await self._load(MediaSource("image", address, f"{path}.image_url"), hold)
                return PictureContent(medium)
            case sent.OutputAudioPart() | sent.AudioPart():
                return SpokenContent(SpokenWords(part.transcript or ""))
        return TextContent(part.text)

    async def _load(self, source: MediaSource, hold: Hold) -> list[Media]:
        return await self._loader.load([source], hold, client=self._client)


def _sound(data: bytes, sound_format: SoundFormat, path: str, transcript: str | None) -> SoundContent:
    pcm = pcm_of(data, sound_format)
    if not pcm:
        raise bad_request(f"'{path}' has no sound.", param=path, code="invalid_audio")
    content = sound_of(pcm, path)
    content.transcript = transcript
    return content
