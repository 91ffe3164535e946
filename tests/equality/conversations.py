"""Lists seventy conversations with every kind and mix of input, in the format of Hugging Face and in the format of the
API.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.equality import media
from tests.reference import Conversation

Part = dict[str, Any]


def text(words: str) -> Part:
    return {"type": "text", "text": words}


class Kit:
    """Makes each media item once, in a directory. The methods return message parts."""

    def __init__(self, directory: Path, data: Path) -> None:
        self._directory = directory
        self._data = data

    def image(self, width: int, height: int, seed: int = 0) -> Part:
        path = self._directory / f"i{width}x{height}-{seed}.png"
        return {"type": "image", "image": str(path if path.exists() else media.make_picture(path, width, height, seed))}

    def audio(self, seconds: float, seed: int = 0, rate: int = media.RATE, channels: int = 1) -> Part:
        path = self._directory / f"a{seconds}-{seed}-{rate}-{channels}.wav"
        made = path if path.exists() else media.make_sound(path, seconds, seed, rate, channels)
        return {"type": "audio", "audio": str(made)}

    def video(self, frames: int, fps: int, seed: int = 0, **options: Any) -> Part:
        path = self._directory / f"v{frames}-{fps}-{seed}-{'-'.join(map(str, options.values()))}.mp4"
        made = path if path.exists() else media.make_clip(path, frames, fps, seed, **options)
        return {"type": "video", "video": str(made)}

    def file(self, kind: str, name: str) -> Part:
        return {"type": kind, kind: str(self._data / name)}


def user(*parts: Part) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def assistant(words: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [text(words)]}


def system(words: str) -> dict[str, Any]:
    return {"role": "system", "content": [text(words)]}


def all_conversations(kit: Kit) -> list[Conversation]:
    """The table of conversations. Each conversation has a unique name, which describes its special feature."""
    image, audio, video, file = kit.image, kit.audio, kit.video, kit.file
    what = text("What is this?")
    table: dict[str, list[dict[str, Any]]] = {
        # text
        "text-hello": [user(text("Hello"))],
        "text-one-letter": [user(text("a"))],
        "text-empty": [user(text(""))],
        "text-spaces": [user(text("  two  spaces \n\n and lines\n"))],
        "text-long": [user(text("The quick brown fox jumps over the lazy dog. " * 30))],
        "text-chinese": [user(text("你好，请介绍一下你自己。"))],
        "text-emoji": [user(text("🎈🎉 party 👩‍👩‍👧 e\u0301"))],
        "text-code": [user(text("def f(x):\n    return x ** 2  # square\n"))],
        "text-numbers": [user(text("3.14159 26535 8979 1e-9 0x7f"))],
        "text-system": [system("You are a helpful assistant."), user(text("Who are you?"))],
        "text-system-empty": [system(""), user(text("Who are you?"))],
        "text-turns": [user(text("Hi")), assistant("Hello!"), user(text("And now?"))],
        "text-many-turns": [
            system("Be brief."),
            *[turn for i in range(4) for turn in (user(text(f"Question {i}?")), assistant(f"Answer {i}."))],
            user(text("Last one.")),
        ],
        # images
        "image-cars": [user(file("image", "cars.jpg"), text("How many cars are there in the picture?"))],
        "image-after-text": [user(text("Look:"), image(64, 48))],
        "image-alone": [user(image(64, 48))],
        "image-empty-text": [user(image(64, 48), text(""))],
        "image-tall": [user(image(17, 333, 1), what)],
        "image-wide": [user(image(600, 40, 2), what)],
        "image-tiny": [user(image(5, 5, 3), what)],
        "image-odd": [user(image(301, 199, 4), what)],
        "image-two": [user(image(64, 64, 5), image(200, 90, 6), text("Compare."))],
        "image-three": [user(image(64, 64, 7), text("and"), image(90, 200, 8), text("and"), image(33, 65, 9), what)],
        "image-four": [user(*[image(40 + 30 * i, 150 - 30 * i, 10 + i) for i in range(4)], text("Which?"))],
        "image-same-twice": [user(image(64, 64, 5), image(64, 64, 5), text("Same?"))],
        "image-swapped": [user(image(200, 90, 6), image(64, 64, 5), text("Compare."))],
        "image-system": [system("You see."), user(image(120, 80, 15), what)],
        "image-earlier-turn": [user(image(96, 96, 16), what), assistant("A wave."), user(text("Sure?"))],
        "image-two-turns": [user(image(96, 96, 16), what), assistant("A wave."), user(image(64, 48), text("This?"))],
        # audio
        "audio-query": [user(file("audio", "query_to_cars.wav"))],
        "audio-0.3": [user(audio(0.3))],
        "audio-0.3-text": [user(audio(0.3, 1), text("Heard?"))],
        "audio-0.99": [user(audio(0.99, 2), text("Heard?"))],
        "audio-1.0": [user(audio(1.0, 3), text("Heard?"))],
        "audio-2.505": [user(audio(2.505, 4), text("Heard?"))],
        "audio-8": [user(audio(8.0, 5), text("Heard?"))],
        "audio-12": [user(text("Listen."), audio(12.0, 6))],
        "audio-40": [user(audio(40.0, 7), text("Summary?"))],
        "audio-two": [user(audio(1.5, 8), audio(2.25, 9), text("Which is longer?"))],
        "audio-two-short": [user(audio(0.4, 10), audio(0.7, 11), text("Which?"))],
        "audio-short-and-long": [user(audio(0.4, 10), audio(3.0, 12), text("Which?"))],
        "audio-three": [user(audio(0.5, 13), text("then"), audio(9.0, 14), text("then"), audio(1.1, 15))],
        "audio-stereo-44100": [user(audio(1.3, 16, 44_100, 2), text("Heard?"))],
        "audio-8000": [user(audio(1.7, 17, 8_000), text("Heard?"))],
        "audio-turns": [user(audio(1.2, 18)), assistant("A tone."), user(audio(0.6, 19))],
        "audio-system": [system("You hear."), user(audio(2.0, 20))],
        # video
        "video-draw": [user(file("video", "draw.mp4"), text("What is being drawn?"))],
        "video-even": [user(video(8, 4), what)],
        "video-odd": [user(video(9, 2, 1), what)],
        "video-five": [user(video(5, 5, 2), what)],
        "video-short": [user(video(4, 25, 3), what)],
        "video-two-frames": [user(video(2, 25, 4), what)],
        "video-fast": [user(video(50, 25, 5), what)],
        "video-portrait": [user(video(6, 2, 6, width=48, height=128), what)],
        "video-two": [user(video(8, 4), text("then"), video(6, 3, 7), text("Compare."))],
        "video-with-sound-unheard": [user(video(12, 4, 8, sound=True), what)],
        "video-earlier-turn": [user(video(8, 4), what), assistant("Bars."), user(text("Moving?"))],
        # mixes
        "mix-image-audio": [user(file("image", "cars.jpg"), file("audio", "query_to_cars.wav"), text(""))],
        "mix-audio-image": [user(audio(1.5, 8), image(64, 64, 5), text("Both?"))],
        "mix-video-audio": [user(file("video", "draw.mp4"), file("audio", "query_to_draw.wav"), text(""))],
        "mix-all": [user(image(64, 48), audio(1.0, 3), video(8, 4), text("Everything?"))],
        "mix-all-reversed": [user(text("Everything?"), video(8, 4), audio(1.0, 3), image(64, 48))],
        "mix-interleaved": [
            user(
                text("a"),
                image(64, 48),
                text("b"),
                audio(0.5, 13),
                text("c"),
                image(40, 150, 10),
                text("d"),
                audio(2, 4),
            )
        ],
        "mix-turns": [
            system("You see and hear."),
            user(image(64, 48), what),
            assistant("A wave."),
            user(audio(1.2, 18), text("And this?")),
            assistant("A tone."),
            user(video(8, 4), text("And that?")),
        ],
    }
    conversations = [Conversation(name, messages) for name, messages in table.items()]
    heard = {
        "heard-clip": [user(video(12, 4, 8, sound=True), what)],
        "heard-clip-system": [system("You see and hear."), user(video(12, 4, 8, sound=True), what)],
        # The sound has few rows and the frames are wide, so the text after the clip has smaller positions than the
        # clip.
        "heard-wide-and-short": [user(video(2, 25, 10, width=640, height=32, sound=True), text("a"))],
        "heard-draw": [user(file("video", "draw.mp4"), text("What is being drawn?"))],
        "heard-clip-and-audio": [user(video(12, 4, 8, sound=True), audio(1.2, 18), what)],
        "heard-two-clips": [user(video(12, 4, 8, sound=True), video(10, 5, 9, sound=True), text("Compare."))],
        "heard-clip-and-image": [user(image(64, 48), video(12, 4, 8, sound=True), what)],
    }
    conversations += [Conversation(name, messages, use_audio_in_video=True) for name, messages in heard.items()]
    conversations += [
        Conversation("fps-1", [user(video(50, 25, 5), what)], fps=1.0),
        Conversation("fps-1.5", [user(video(50, 25, 5), text("Then"), image(64, 48), what)], fps=1.5),
        Conversation("fps-4-heard", [user(video(12, 4, 8, sound=True), what)], fps=4.0, use_audio_in_video=True),
    ]
    return conversations


def request(conversation: Conversation) -> dict[str, Any]:
    """The body of an API request for a conversation. The media are content parts with the paths of the files."""
    fields = {"image": "image_url", "audio": "audio_url", "video": "video_url"}

    def part(hf: Part) -> Part:
        kind = hf["type"]
        if kind == "text":
            return hf
        return {"type": fields[kind], fields[kind]: {"url": hf[kind]}}

    body: dict[str, Any] = {
        "messages": [
            {"role": message["role"], "content": [part(one) for one in message["content"]]}
            for message in conversation.messages
        ]
    }
    if any(one["type"] == "video" for message in conversation.messages for one in message["content"]):
        body |= {"video_fps": conversation.fps, "use_audio_in_video": conversation.use_audio_in_video}
    return body
