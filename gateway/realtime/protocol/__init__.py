"""The events of OpenAI's Realtime API as data: the events of clients, the events of the server, and the settings of
sessions.
"""
