"""Loading the media that a request names, within the policy. Not: decoding (the stages do that)."""
