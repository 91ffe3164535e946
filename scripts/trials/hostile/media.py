"""Attacks through media that are costly to decode, or that take long to arrive."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import struct
import zlib
from fractions import Fraction

import av
import numpy
from fuzzing.media import make
from fuzzing.seeds import seeds
from PIL import Image

from trials.hostile.client import HostileClient, Round, Target, chat

MIB = 2**20


def long_clips(draw: random.Random, target: Target) -> Round:
    """Attacks the time of the decoders: sends long valid clips, and disconnects early in half of the cases."""
    body = _body("videos", [_long_clip(minutes=10)], video_fps=0.05)

    async def attack(client: HostileClient) -> None:
        if client.draw.random() < 0.5:
            await client.post(body)
            return
        async with client.connection() as wire:
            await wire.send(client.head(len(body)) + body)
            await asyncio.sleep(client.draw.uniform(0.2, 3.0))
        client.outcomes["left while it was read"] += 1

    return attack


def scan_bombs(draw: random.Random, target: Target) -> Round:
    """Attacks the limit of scans: sends plain JPEGs, JPEGs with an MPF segment or AVIs, all with thousands of scans."""
    plain, album = _progressive(2048, "JPEG"), _progressive(2048, "MPO")
    bodies = [
        _body("images", [_with_scans(plain, 3000)]),
        _body("images", [_with_scans(album, 3000)]),
        _body("images", [_with_scans(album, 3000)] * 4),
        _body("videos", [_motion_jpeg(_with_scans(_progressive(1024, "JPEG"), 5000), 1024)]),
    ]

    async def attack(client: HostileClient) -> None:
        await client.post(client.draw.choice(bodies))

    return attack


def flat_pictures(draw: random.Random, target: Target) -> Round:
    """Attacks the memory of decoded media: sends pictures of a few KB that have as many pixels as the server allows."""
    side = int(target.image_pixels**0.5)
    body = _body("images", [_flat_png(side, side)] * 5)

    async def attack(client: HostileClient) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(client.post(body))

    return attack


def big_icons(draw: random.Random, target: Target) -> Round:
    """Attacks the size in an icon's header: sends icons that contain a PNG of a far larger size."""
    bodies = [_body("images", [_icon(_flat_png(side, side))]) for side in (4000, 16_000, 40_000)]

    async def attack(client: HostileClient) -> None:
        await client.post(client.draw.choice(bodies))

    return attack


def crash_files(draw: random.Random, target: Target) -> Round:
    """Attacks the process that decodes: sends damaged files of every container, as `fuzz.py` makes them."""
    files = seeds()
    seed = draw.randrange(2**31)

    async def attack(client: HostileClient) -> None:
        number = client.draw.randrange(10**6)
        await client.post(json.dumps(make(number, seed, files).options["json"]).encode())

    return attack


def slow_downloads(draw: random.Random, target: Target) -> Round:
    """Attacks the count of downloads: each request names eight large files, which arrive fast but never end."""
    almost = target.media_bytes - MIB
    server: list[asyncio.Server] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {almost + 1}\r\n\r\n".encode())
            piece = bytes(MIB)
            for _ in range(almost // MIB):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.02)
            await reader.read()  # wait until the server gives up
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # a task that ends as cancelled would be logged as an error
        finally:
            writer.transport.abort()

    async def attack(client: HostileClient) -> None:
        if not server:
            server.append(await asyncio.start_server(serve, "127.0.0.1", 0))
        port = server[0].sockets[0].getsockname()[1]
        body = chat("", images=[f"http://127.0.0.1:{port}/{number}" for number in range(8)])
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(client.post(body))

    return attack


# --- the files ---


def _body(field: str, files: list[bytes], **fields: object) -> bytes:
    urls = [f"data:;base64,{base64.b64encode(data).decode()}" for data in files]
    return json.dumps(chat("", **{field: urls}, **fields)).encode()


def _flat_png(width: int, height: int) -> bytes:
    """A black picture with one bit per pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    data = b"".join([packer.compress(row * 64) for _ in range(height // 64)])
    data += packer.compress(row * (height % 64)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _icon(png: bytes) -> bytes:
    """An icon whose header gives the size 256×256, and which contains `png`."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(png), 22) + png


def _progressive(side: int, kind: str) -> bytes:
    picture = Image.new("RGB", (side, side), (90, 120, 150))
    options = {"save_all": True, "append_images": [picture.resize((16, 16))]} if kind == "MPO" else {}
    file = io.BytesIO()
    picture.save(file, kind, progressive=True, **options)
    return file.getvalue()


def _with_scans(jpeg: bytes, count: int) -> bytes:
    """`jpeg` with `count` further copies of the last scan of its first picture."""
    at, scan = 2, (0, 0)
    while jpeg[at + 1] != 0xD9:  # the end of the first picture
        after = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if jpeg[at + 1] == 0xDA:
            while jpeg[after] != 0xFF or jpeg[after + 1] == 0 or 0xD0 <= jpeg[after + 1] <= 0xD7:
                after += 1
            scan = (at, after)
        at = after
    begin, end = scan
    return jpeg[:end] + jpeg[begin:end] * count + jpeg[end:]


def _motion_jpeg(frame: bytes, side: int, frames: int = 20) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as output:
        stream = output.add_stream("mjpeg", rate=10)
        stream.width = stream.height = side
        stream.pix_fmt = "yuvj420p"
        _mux(output, stream, [frame], frames, Fraction(1, 10))
    return file.getvalue()


def _long_clip(minutes: int) -> bytes:
    """A valid clip of 1920×1080 pixels and 25 frames a second, which repeats its first second."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 1920, 1080, "yuv420p", 25
        squares = (numpy.mgrid[0:1080, 0:1920] // 360).sum(0, dtype=numpy.uint8) % 2 * 200
        frames = [
            av.VideoFrame.from_ndarray(numpy.repeat(numpy.roll(squares, 4 * i, 1)[..., None], 3, 2)) for i in range(25)
        ]
        packets = [bytes(packet) for frame in (*frames, None) for packet in stream.encode(frame)]
        _mux(output, stream, packets, 25 * 60 * minutes, Fraction(1, 25))
    return file.getvalue()


def _mux(
    output: av.container.OutputContainer, stream: av.VideoStream, packets: list[bytes], count: int, step: Fraction
) -> None:
    """Write `count` packets by repeating the given `packets`."""
    for number in range(count):
        packet = av.Packet(packets[number % len(packets)])
        packet.stream = stream
        packet.time_base = step
        packet.pts = packet.dts = number
        packet.duration = 1
        packet.is_keyframe = number % len(packets) == 0
        output.mux(packet)


KINDS = (long_clips, scan_bombs, flat_pictures, big_icons, crash_files, slow_downloads)
