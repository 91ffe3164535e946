"""Loading the media that a request names, within the policy. Not here: decoding, which the stages do."""
