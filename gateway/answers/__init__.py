"""One request's way from its body to its streamed or whole answer. Not: what holds for all requests."""
