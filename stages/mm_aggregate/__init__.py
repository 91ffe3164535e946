"""The stage mm_aggregate: one thinker request of a prompt and its media rows."""

from stages.mm_aggregate.stage import Aggregate

__all__ = ["Aggregate"]
