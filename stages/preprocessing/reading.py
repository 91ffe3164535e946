"""Prepares a text to read aloud: makes the talker's prompt, and then one passage after the other."""

from __future__ import annotations

from collections.abc import Iterator

from omni_pipeline.errors import bad_request, internal
from omni_pipeline.wire.messages import Chunk, End, Start, Work
from omni_pipeline.wire.tensor import Tensor
from stages.messages import Passage, SpeechRequest, TalkerPrompt, Text, Turn
from stages.preprocessing.conversation import ChatTokenizer
from stages.preprocessing.layout import lay_out
from stages.preprocessing.passages import passages
from stages.preprocessing.spoken import Roles, spoken_prompt

TALKER = "talker_ar"

# Number of ids with which the chat template begins the assistant's turn.
_OPENING = 3


class ReadingTokenizer:
    """Turns a text to read aloud into messages for the talker.

    Args:
        name: The name of the stage that sends the messages.
        chat: Tokenises with the chat template. If a text spells out a special token, the spelling is tokenised as
            ordinary text.
        roles: Ids of the tokens that mark turns; None if the deployment does not speak.
    """

    def __init__(self, name: str, chat: ChatTokenizer, roles: Roles | None) -> None:
        self._name = name
        self._chat = chat
        self._roles = roles

    def messages(self, request_id: str, request: SpeechRequest) -> Iterator[Work]:
        """The prompt, and each passage of the text. The passages are tokenised one by one, when the caller asks for the
        next message. Tokenising a passage takes about a millisecond. So other requests do not wait for a long text.

        Raises:
            OmniError: 400 if the text has no words.
        """
        prompt = self._prompt(request)
        previous: list[int] | None = None
        for text in passages(request.text):
            ids = self._chat.text_ids(text)
            if not ids:
                continue
            if previous is None:
                yield Start(request_id, self._name, TALKER, prompt)
            else:
                yield Chunk(request_id, self._name, TALKER, Passage(previous))
            previous = ids
        if previous is None:
            raise bad_request("Invalid 'input': it has no words.", param="input", code="invalid_value")
        yield End(request_id, self._name, TALKER, Passage(previous))

    def _prompt(self, request: SpeechRequest) -> TalkerPrompt:
        """The prompt that the reference's talker would receive for an answer to `instructions`."""
        if self._roles is None:
            raise internal("Speech was requested from a pipeline without a talker.")
        skeleton = self._chat.skeleton([Turn("user", [Text(request.instructions)])], [])
        layout = lay_out(skeleton, [], self._chat.tokens, 0.0)
        spoken = spoken_prompt(layout, [], self._roles, request.speech)
        user = layout.ids[spoken.user_rows.numpy()]
        return TalkerPrompt(
            ids=Tensor.of(user if request.instructions else user[:0]),
            media_rows=None,
            media_hidden=None,
            assistant_ids=layout.ids[-_OPENING:].tolist(),
            positions=None,
            position_delta=0.0,
            speech=request.speech,
        )
