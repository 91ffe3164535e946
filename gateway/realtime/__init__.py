"""Spoken conversations over a WebSocket, in the events of OpenAI's Realtime API."""
