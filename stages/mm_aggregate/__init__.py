"""The stage mm_aggregate: combines a prompt and the embedding rows of its media into one thinker request.

Ids for the prefix cache belong in this package too. The rows themselves come from the encoders.
"""

from stages.mm_aggregate.stage import Aggregate

__all__ = ["Aggregate"]
