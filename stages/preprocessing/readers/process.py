"""Contains the code that runs in a reader process. A reader answers questions about texts and media, one by one."""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
from collections.abc import Callable
from typing import Any, NoReturn

import numpy
import torch
from msgspec import Struct

from omni_pipeline.errors import OmniError, internal
from omni_pipeline.os_process import set_title
from omni_pipeline.wire.codec import Codec
from omni_pipeline.wire.messages import Chunk, End, Failed
from omni_pipeline.wire.tensor import Tensor
from stages.grammars.compile_grammar import compiled
from stages.grammars.vocabulary import Vocabulary
from stages.messages import Grammar, Media, Tool, Turn, VideoOptions
from stages.preprocessing.conversation import ChatTokenizer
from stages.preprocessing.cpu_time import limited_cpu_time
from stages.preprocessing.media import MediaReader, ReadMedia
from stages.preprocessing.readers.channel import receive_all, send_all
from stages.preprocessing.survey import MediumSurvey

logger = logging.getLogger(__name__)

STAGE, READER = "preprocessing", "reader"

# Maximum CPU seconds for compiling a grammar. An ordinary JSON schema takes some milliseconds.
COMPILING_SECONDS = 0.5


class Tokenise(Struct, tag="tokenise"):
    """Tokenise a conversation. The fields are the arguments of `ChatTokenizer.skeleton`; the media are sent without
    their bytes.
    """

    turns: list[Turn]
    media: list[Media]
    thinking: bool | None = None
    tools: list[Tool] = []


class Survey(Struct, tag="survey"):
    """Examine media without decoding them. The fields are the arguments of `MediaReader.survey`. The reader keeps the
    media.
    """

    media: list[Media]
    video: VideoOptions
    text_tokens: int


class Read(Struct, tag="read"):
    """Decode media. The fields are the arguments of `MediaReader.read`.

    Attributes:
        held: Whether to use the media of the latest `Survey`; `media` is then empty.
    """

    media: list[Media]
    video: VideoOptions
    text_tokens: int
    surveys: list[MediumSurvey]
    held: bool = False


class Measure(Struct, tag="measure"):
    """Find the length of a recording without decoding it. The recording is the only item of `media`. The reader keeps
    it.
    """

    media: list[Media]


class Cut(Struct, tag="cut"):
    """Decode a recording, which is the only item of `media`, and find the ends of its pieces.

    Attributes:
        piece_seconds: Maximum length of a piece.
        held: Whether to use the recording of the latest `Measure`; `media` is then empty.
    """

    media: list[Media]
    piece_seconds: float
    held: bool = False


class Check(Struct, tag="check"):
    """Compile a grammar and drop the result. This is a test: the compiler must not take too long, and must
    not crash.
    """

    grammar: Grammar


class Drop(Struct, tag="drop"):
    """Forget the media of the latest `Survey` or `Measure`. There is no answer."""


class Greeting(Struct, tag="greeting"):
    """The reader has started, and waits for its first question."""


class Reading(Struct, tag="reading"):
    """The reader has begun with the media item at this index."""

    index: int


class Tokens(Struct, tag="tokens"):
    """The answer to `Tokenise`: int64 [n]."""

    ids: Tensor


class Surveys(Struct, tag="surveys"):
    """The answer to `Survey` or `Measure`: one entry for each media item."""

    items: list[MediumSurvey]


class CutSound(Struct, tag="cut_sound"):
    """The answer to `Cut`: the decoded recording, float32 [samples], and the sample at which each piece ends."""

    samples: Tensor
    ends: list[int]


class Checked(Struct, tag="checked"):
    """The answer to `Check`: the grammar can be compiled."""


Question = Tokenise | Survey | Read | Measure | Cut | Check
Answer = Tokens | Surveys | ReadMedia | CutSound | Checked

EDGES: dict[tuple[str, str], Any] = {
    (STAGE, READER): Question | Drop,
    (READER, STAGE): Greeting | Reading | Answer,
}


class ReaderWork:
    """Answers the questions that a reader receives.

    Args:
        chat: Tokenises conversations.
        media: Examines and decodes media.
        vocabulary: The vocabulary for grammars.
    """

    def __init__(self, chat: ChatTokenizer, media: MediaReader, vocabulary: Vocabulary) -> None:
        self._chat = chat
        self._media = media
        self._vocabulary = vocabulary
        self._held: list[Media] = []

    def drop(self) -> None:
        """Forget the media of the latest `Survey` or `Measure`."""
        self._held = []

    def answer(self, question: Question, begin: Callable[[int], None]) -> Answer:
        """Answer a question.

        Args:
            begin: Called with the index of each media item before the item is read, and with 0 before a grammar is
                compiled.

        Raises:
            OmniError: The request's error.
        """
        held, self._held = self._held, []
        match question:
            case Tokenise():
                ids = self._chat.skeleton(question.turns, question.media, question.thinking, question.tools)
                return Tokens(Tensor.of(numpy.asarray(ids, numpy.int64)))
            case Survey():
                self._held = question.media
                return Surveys(self._media.survey(question.media, question.video, question.text_tokens, begin))
            case Read():
                media = held if question.held else question.media
                return self._media.read(media, question.video, question.text_tokens, begin, question.surveys)
            case Measure():
                self._held = question.media
                begin(0)
                return Surveys([self._media.measure(question.media[0])])
            case Cut():
                [sound] = held if question.held else question.media
                begin(0)
                samples, ends = self._media.cut(sound, question.piece_seconds)
                return CutSound(Tensor.of(samples), ends)
            case Check():
                begin(0)
                with limited_cpu_time(COMPILING_SECONDS):
                    compiled(question.grammar, self._vocabulary)
                return Checked()


_WHAT: dict[type, str] = {
    Tokenise: "conversation could not be tokenised",
    Survey: "media could not be read",
    Read: "media could not be read",
    Measure: "media could not be read",
    Cut: "media could not be read",
    Check: "grammar could not be compiled",
}


def be_reader(work: ReaderWork, questions: socket.socket) -> NoReturn:
    """The process's main loop: answer questions until the other end closes the socket."""
    code = 1
    try:
        set_title("preprocessing: reader")
        _leave_output_to_us()
        torch.set_num_threads(1)  # the parent's threads do not exist in this process
        codec = Codec(EDGES)

        def tell(body: Greeting | Reading) -> None:
            send_all(questions, codec.encode(Chunk("", READER, STAGE, body)))

        tell(Greeting())
        while True:
            send_all(questions, codec.encode(_next_answer(work, questions, codec, tell)))
    except (EOFError, ConnectionError):
        code = 0
    except BaseException:
        logger.exception("a reader process ends because of an error")
    finally:
        os._exit(code)


def _next_answer(
    work: ReaderWork, questions: socket.socket, codec: Codec, tell: Callable[[Reading], None]
) -> End[Answer] | Failed:
    """Wait for a question that needs an answer, and answer the question. The question is a local variable, so the
    memory of its media is freed when this function returns.
    """
    while isinstance(question := codec.decode(receive_all(questions)).body, Drop):  # type: ignore[union-attr]
        work.drop()
    try:
        return End("", READER, STAGE, work.answer(question, lambda index: tell(Reading(index))))
    except OmniError as error:
        work.drop()
        return Failed("", READER, error.info)
    except ConnectionError:
        raise  # the pool does not use this reader any more
    except Exception:
        work.drop()
        logger.exception("a reader process could not handle a request")
        return Failed("", READER, internal(f"The {_WHAT[type(question)]}.").info)


def _leave_output_to_us() -> None:
    """Discard the output that C libraries print about clients' files. Our own log lines still go to standard error."""
    ours = os.fdopen(os.dup(2), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    faulthandler.enable(ours)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(ours)
