"""Lists the conversations that the tests of single stages use."""

from functools import cache

import numpy
from conversations import Case, Film
from media_files import clip_file, picture, tone

from stages.messages import VideoOptions

QUESTION = "What do you see and hear?"


def film(frames: int, *, rate: int = 4, seconds: float | None = None, seed: int = 0, **options: int) -> Film:
    """A clip with `seconds` of sound, which is stored without loss at 16 bits. If `seconds` is None, the clip has no
    sound.
    """
    if seconds is None:
        return Film(clip_file(frames, rate=rate, seed=seed, **options))
    sound = (tone(seconds, seed=seed) * 32767).round() / 32768
    file = clip_file(frames, rate=rate, sound=sound, format="matroska", sound_codec="pcm_s16le", seed=seed, **options)
    return Film(file, sound.astype(numpy.float32))


def silent(frames: int, rate: int) -> Film:
    """A clip without a sound track. The reference gets silence as the clip's sound."""
    return Film(clip_file(frames, rate=rate), numpy.zeros(round(frames / rate * 16_000), numpy.float32))


@cache
def conversations() -> list[Case]:
    seen = VideoOptions()
    heard = VideoOptions(use_audio=True)
    return [
        Case("text", [("user", ["How are you?"])]),
        Case("empty text", [("user", [""])]),
        Case("unicode and blanks", [("user", ["  e\u0301té — 日本語 🎈\r\n\tокно  \n\n"])]),
        Case("markup", [("user", ["<think>no</think> <tool_call> <|nothing|> <| im_end |>"])]),
        Case("several texts in a turn", [("user", ["One. ", "Two.", ""])]),
        Case("system", [("system", ["Be brief."]), ("user", ["Hello."])]),
        Case(
            "turns", [("system", [""]), ("user", ["Hi"]), ("assistant", ["<think>\n</think>Yes?"]), ("user", ["Bye"])]
        ),
        Case("image", [("user", [picture(160, 96), QUESTION])]),
        Case("image and empty text", [("user", [picture(100, 130, seed=1), ""])]),
        Case("image after text", [("user", [QUESTION, picture(333, 57, seed=2)])]),
        Case("one pixel", [("user", [picture(1, 1), QUESTION])]),
        Case("very wide", [("user", [picture(2000, 10), QUESTION])]),
        Case("four images", [("user", [*(picture(60 + 90 * i, 200 - 40 * i, seed=i) for i in range(4)), QUESTION])]),
        Case("two images of a size", [("user", [picture(seed=1), "and", picture(seed=2), QUESTION])]),
        *(
            Case(f"sound of {seconds} s", [("user", [tone(seconds), QUESTION])])
            for seconds in (0.025, 0.3, 0.99, 1, 2.345, 40)
        ),
        Case("sounds", [("user", [tone(3), tone(1.04, seed=1), "then", tone(0.5, seed=2), QUESTION])]),
        Case("short sounds", [("user", [tone(0.4), tone(0.71, seed=1), QUESTION])]),
        Case("video", [("user", [film(16), QUESTION])], seen),
        Case("video of odd length", [("user", [film(13), QUESTION])], seen),
        Case("video of two frames", [("user", [film(2), QUESTION])], seen),
        Case("video of three frames", [("user", [film(3), QUESTION])], seen),
        Case("video with sound unheard", [("user", [film(12, seconds=3), QUESTION])], seen),
        Case("video heard", [("user", [film(12, seconds=3), QUESTION])], heard),
        Case("video heard at 1.5 fps", [("user", [film(19, seconds=4.7), "?"])], VideoOptions(fps=1.5, use_audio=True)),
        Case("video at 0.7 fps", [("user", [film(41), QUESTION])], VideoOptions(fps=0.7)),
        Case("video at most six frames", [("user", [film(40), QUESTION])], VideoOptions(max_frames=6)),
        Case("sound longer than the video", [("user", [film(4, seconds=3), QUESTION])], heard),
        Case("sound shorter than the video", [("user", [film(24, seconds=0.6), QUESTION])], heard),
        Case("video without sound, heard", [("user", [silent(8, 4), QUESTION])], heard),
        Case("two videos", [("user", [film(9), film(12, width=64, height=128, seed=1), QUESTION])], seen),
        Case("two videos heard", [("user", [film(9, seconds=2), silent(8, 2), tone(1.3), QUESTION])], heard),
        Case("everything", [("user", [picture(), tone(1.7), film(6), QUESTION])], seen),
        Case("everything backwards", [("user", [QUESTION, film(6, seconds=1.5), tone(1.7), picture()])], heard),
        Case("sound between images", [("user", [picture(seed=1), tone(1.2), picture(64, 64), QUESTION])]),
        Case(
            "media in earlier turns",
            [
                ("system", ["Be brief."]),
                ("user", [picture(), "What is it?"]),
                ("assistant", ["A gradient."]),
                ("user", [tone(2.2), ""]),
                ("assistant", ["A tone."]),
                ("user", [film(8, seconds=2), picture(90, 90, seed=3), QUESTION]),
            ],
            heard,
        ),
    ]


@cache
def media_of_every_kind() -> list[Case]:
    """Requests with one or more media items of one kind, and one with all kinds."""
    heard = VideoOptions(use_audio=True)
    return [
        Case("picture", [("user", [picture(), "What?"])]),
        Case("pictures", [("user", [picture(64, 64), picture(300, 40, seed=1), "What?"])]),
        Case("sound", [("user", [tone(2.345), "What?"])]),
        Case("short sounds", [("user", [tone(0.3), tone(0.1, seed=1), "What?"])]),
        Case("clip", [("user", [film(7), "What?"])]),
        Case("clip with sound", [("user", [film(8, seconds=2), "What?"])], heard),
        Case("clip with silence", [("user", [film(8), "What?"])], heard),
        Case("everything", [("user", [picture(), tone(1), film(5), "What?"])]),
    ]
