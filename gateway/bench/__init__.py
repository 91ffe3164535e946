"""`sgl-omni bench`: drives any server of this API over HTTP and reports how fast and how steadily it answers."""
