"""A chat request's way from its body to its streamed or whole answer. Not here: what applies to all requests."""
