"""OpenAI's Responses API as data: the fields of its requests, its answers and its events. Also the conversion between
this API and chat completions.
"""
