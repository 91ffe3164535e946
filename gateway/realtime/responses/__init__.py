"""Makes the responses of a session and their events, and the transcripts of the sounds that the user sends."""
