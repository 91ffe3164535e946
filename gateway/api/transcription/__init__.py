"""Requests for transcripts and translations of sounds, and the answers. Clients send these requests as forms."""
