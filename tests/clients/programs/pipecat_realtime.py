"""Talks with the model through a headless Pipecat pipeline. Pipecat's service for OpenAI's API has its default
settings.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from cases import DATA, FOLLOW_UP, KEY, QUESTION, STOCK
from loguru import logger
from PIL import Image
from pipecat.frames.frames import (
    CancelFrame,
    ErrorFrame,
    InputAudioRawFrame,
    InputImageRawFrame,
    LLMFullResponseEndFrame,
    LLMRunFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner
from realtime_cases import LISTENED, LONG_QUESTION, QUESTION_PCM, RATE, SOCKET_URL, Microphone, print_results, spoken

logger.remove()
logger.add(sys.stderr, level="WARNING")


class Ears(FrameProcessor):
    """Collects the frames that the service sends."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.sounds: list[bytes] = []
        self.answers: asyncio.Queue[Any] = asyncio.Queue()  # errors too
        self.heard = asyncio.Event()

    async def process_frame(self, frame: Any, direction: Any) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSTextFrame):
            self.words.append(frame.text)
        if isinstance(frame, TTSAudioRawFrame):
            self.sounds.append(frame.audio)
            self.heard.set()
        if isinstance(frame, LLMFullResponseEndFrame) and (self.words or self.sounds):
            self.answers.put_nowait(spoken("".join(self.words), b"".join(self.sounds)))
            self.words, self.sounds = [], []
        await self.push_frame(frame, direction)


class Talk:
    """A running pipeline.

    Attributes:
        items: The items of the conversation in the order of their creation. The keys are their ids.
    """

    def __init__(self, context: LLMContext, properties: events.SessionProperties) -> None:
        settings = OpenAIRealtimeLLMService.Settings(model="qwen3-omni", session_properties=properties)
        self.service = OpenAIRealtimeLLMService(api_key=KEY, base_url=f"{SOCKET_URL}/realtime", settings=settings)
        self.items: dict[str, Any] = {}
        self.item_added = asyncio.Event()
        self.ears = Ears()
        user, assistant = LLMContextAggregatorPair(context)
        self.worker = PipelineWorker(Pipeline([user, self.service, self.ears, assistant]))

        @self.service.event_handler("on_conversation_item_created")
        async def note(_: Any, item_id: str, item: Any) -> None:
            self.items[item_id] = item
            self.item_added.set()

        @self.service.event_handler("on_error")
        async def note_error(_: Any, frame: ErrorFrame) -> None:
            self.ears.answers.put_nowait(RuntimeError(frame.error))

    async def send_packet(self, pcm: bytes) -> None:
        await self.worker.queue_frame(InputAudioRawFrame(audio=pcm, sample_rate=RATE, num_channels=1))

    async def show_picture(self) -> None:
        with Image.open(DATA / "cars.jpg") as picture:
            frame = InputImageRawFrame(image=picture.tobytes(), size=picture.size, format=picture.mode)
        await self.worker.queue_frame(frame)
        await self.item_added.wait()

    async def answer(self) -> dict[str, Any]:
        """Read the next answer until it ends."""
        answer = await self.ears.answers.get()
        if isinstance(answer, RuntimeError):
            raise answer
        return answer


@asynccontextmanager
async def talk(messages: list[Any] | None = None, **properties: Any) -> AsyncIterator[Talk]:
    one = Talk(LLMContext(messages or []), events.SessionProperties(**properties))
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(one.worker)
    running = asyncio.create_task(runner.run())
    try:
        yield one
    finally:
        await one.worker.queue_frame(CancelFrame())
        await running


async def picture_turn() -> dict[str, Any]:
    async with talk() as one, Microphone(one.send_packet) as microphone:
        await one.show_picture()
        microphone.say(QUESTION_PCM)
        return await one.answer()


async def barge_in() -> dict[str, Any]:
    """When the user begins to speak, the service itself truncates the answer to the part that has been played."""
    async with talk([{"role": "user", "content": LONG_QUESTION}]) as one, Microphone(one.send_packet) as microphone:
        await one.show_picture()
        await one.worker.queue_frame(LLMRunFrame())
        await one.ears.heard.wait()
        await asyncio.sleep(LISTENED)
        microphone.say(QUESTION_PCM)
        before = await one.answer()
        answer = await one.answer()
        [first, *_] = [item_id for item_id, item in one.items.items() if item.role == "assistant"]
        item = await one.service.retrieve_conversation_item(first)
        return answer | {"before": before["text"], "heard": item.content[0].transcript}


async def tool_call() -> dict[str, Any]:
    called: list[Any] = []

    async def look(call: Any) -> None:
        called.append({"name": call.function_name, "arguments": dict(call.arguments)})
        # If `tool_choice` remained `required`, the model would call the tool again instead of speaking about the
        # result.
        update = events.SessionUpdateEvent(session=events.SessionProperties(tool_choice="auto"))
        await call.llm.send_client_event(update)
        await call.result_callback("3")

    tools = [{"type": "function"} | STOCK]  # Pipecat's own form of a tool cannot forbid further arguments
    async with talk([{"role": "user", "content": QUESTION}], tools=tools, tool_choice="required") as one:
        one.service.register_function(STOCK["name"], look)
        await one.worker.queue_frame(LLMRunFrame())
        answer = await one.answer()
        [call] = called
        return answer | {"called": call}


async def history() -> dict[str, Any]:
    """The service describes an earlier conversation in one message."""
    kept = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "There are three cars."},
        {"role": "user", "content": FOLLOW_UP},
    ]
    async with talk(kept) as one:
        await one.show_picture()
        await one.worker.queue_frame(LLMRunFrame())
        return await one.answer()


print_results({"picture": picture_turn, "barge-in": barge_in, "tool": tool_call, "history": history})
