"""Computes an upper bound of a server's memory from the limits in its configuration."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from gateway.grants import default_limit
from omni_pipeline.config.schema import Server
from stages.options import EncoderOptions, PreprocessingOptions

# The maximum number of copies of a body and its media at the same time: one copy as received, one copy after decoding,
# and one copy on the way from one process to the next.
_COPIES = 3
# The maximum number of copies of decoded media at the same time: in the process that decoded them, and in the stage
# that receives them.
_BORDER_COPIES = 2
# The maximum number of copies of a decoded picture in a reader process at the same time: one copy from the decoder, one
# turned and converted copy, and one resized copy.
_PICTURES = 3
_CHANNELS = 3
# Number of readers if the configuration gives no number. The number is not imported, because the pool of readers needs
# torch.
_MOST_READERS = 8
# Buffers of one connection in the main process: received bytes that have not been read yet, and written bytes that have
# not been sent yet.
_CONNECTION_BYTES = 4 * 2**16
# Memory that allocators keep after it has been freed, and memory that graph recordings and caches of libraries add
# under load.
_SLACK = 256 * 2**20


class ConfiguredLimits(Struct, frozen=True):
    """The settings that limit the memory of a server. If the configuration leaves out a setting, this object contains
    the default of the setting.
    """

    server: Server
    reading: PreprocessingOptions
    encoders: list[EncoderOptions]

    @classmethod
    def of(cls, config: dict[str, Any]) -> ConfiguredLimits:
        """The limits in the content of a configuration file."""

        def options(stage: str) -> dict[str, Any]:
            found: dict[str, Any] = config.get("stages", {}).get(stage, {}).get("options", {})
            return found

        return cls(
            msgspec.convert(config.get("server", {}), Server),
            msgspec.convert(options("preprocessing"), PreprocessingOptions),
            [msgspec.convert(options(name), EncoderOptions) for name in ("image_encoder", "audio_encoder")],
        )


def memory_bound(configured: ConfiguredLimits, at_rest: int) -> dict[str, int]:
    """The parts of the bound, in bytes. The keys are their names. The bound is the sum of the parts.

    Args:
        at_rest: The memory of the server before the siege, when no request was running.
    """
    limits, reading = configured.server.limits, configured.reading
    readers = reading.readers or _MOST_READERS
    picture = max(reading.max_image_pixels, reading.max_video_pixels) * _CHANNELS
    return {
        "at rest": at_rest,
        f"held_bytes × {_COPIES}": limits.held_bytes * _COPIES,
        f"one body that is decoded: body_bytes × {_COPIES - 1}": limits.body_bytes * (_COPIES - 1),
        f"decoded_bytes × {_BORDER_COPIES}": (limits.decoded_bytes or default_limit()) * _BORDER_COPIES,
        f"a picture in each reader: readers × pixels × {_CHANNELS} × {_PICTURES}": readers * picture * _PICTURES,
        "answers that are not read: requests × reader_bytes": limits.requests * limits.reader_bytes,
        "transcripts of spoken answers: transcript_bytes": limits.transcript_bytes,
        f"connections × {_CONNECTION_BYTES // 1024} KiB": limits.connections * _CONNECTION_BYTES,
        "caches of the encoders: cache_bytes": sum(each.cache_bytes for each in configured.encoders),
        "allocators": _SLACK,
    }
