"""The HTTP API as data: what a body may say, and what answers look like. Not: how an answer is made."""
