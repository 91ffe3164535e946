"""Realtime sessions with a real server: the effect of a damaged picture on a conversation."""

from __future__ import annotations

import base64
from typing import Any

from gateway.serving.warmup import png
from tests.gateway.realtime.talking import talking
from tests.server import Server


async def test_a_damaged_picture_fails_one_response_and_leaves_the_conversation(server: Server) -> None:
    whole = png()
    damaged = whole[: len(whole) // 2]

    def item(name: str, picture: bytes) -> dict[str, Any]:
        url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        return {"id": name, "type": "message", "role": "user", "content": [{"type": "input_image", "image_url": url}]}

    async with talking(server.url) as talk:
        for name, picture in (("whole", whole), ("damaged", damaged)):
            await talk.send("conversation.item.create", item=item(name, picture))
            await talk.until("conversation.item.done")
        failed = (await talk.respond(max_output_tokens=4))[-1]["response"]
        assert failed["status"] == "failed"
        assert "damaged.content[0]" in failed["status_details"]["error"]["message"]
        assert (await talk.until("conversation.item.deleted"))["item_id"] == "damaged"
        answered = (await talk.respond(max_output_tokens=4))[-1]["response"]
        assert answered["status"] in ("completed", "incomplete")
        assert answered["usage"]["input_token_details"]["image_tokens"] > 0
