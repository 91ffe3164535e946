"""Assigns each new request to one replica of each group of stages, and counts the requests of each replica."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct

from omni_pipeline.contract.prompt_chain import UNKNOWN_PROMPT, PromptChain
from omni_pipeline.supervision.prompt_loads import CacheUse, PromptLoads
from omni_pipeline.supervision.replica_choice import OPEN_TOKENS, Candidate, Choice, Reason, choose


class RouteReport(Struct, frozen=True):
    """The choices of replicas of one group since the server started.

    Attributes:
        choices: Number of choices by reason.
        use: The use of the prefix caches; None for a group without prefix caches.
    """

    group: str
    choices: Mapping[Reason, int]
    use: CacheUse | None


class Bindings:
    """The replicas of all open requests. A request always keeps its replicas.

    Args:
        prompts: The prompts that wait at each replica, and the prompts that are probably in each replica's prefix
            cache. These prompts affect the choice of a replica only in the groups in `prompts.groups`.
        overload: See `config.schema.Routing`.
    """

    def __init__(self, prompts: PromptLoads, overload: float) -> None:
        self._prompts = prompts
        self._overload = overload
        self._bound: dict[str, dict[str, int]] = {}
        self._requests: dict[tuple[str, int], set[str]] = {}
        self._latest: dict[str, int] = {}  # for each group, the replica that was chosen last
        self._choices: dict[str, dict[Reason, int]] = {}

    def bind(
        self,
        request_id: str,
        live: Mapping[str, Sequence[int]],
        fixed: Mapping[str, int],
        chain: PromptChain = UNKNOWN_PROMPT,
    ) -> dict[str, int]:
        """Choose the replicas of a request. The request counts as open until `release`.

        In a group without prefix caches, the replica with the fewest open requests is chosen. In a group with prefix
        caches, the cached part of the prompt and the waiting prompts count too: see `replica_choice`. If several
        replicas are equally good, they take turns.

        Args:
            live: The replicas to choose from, by group. There is at least one replica for each group that the request
                needs.
            fixed: The replicas of groups for which there is no choice.
            chain: The prompt of the request.
        """
        bound: dict[str, int] = {}
        for group, replicas in live.items():
            choice = self._choose(group, [fixed[group]] if group in fixed else replicas, chain)
            bound[group] = choice.replica
            counts = self._choices.setdefault(group, dict.fromkeys(Reason, 0))
            counts[choice.reason] += 1
            if group in self._prompts.groups:
                self._prompts.add(request_id, group, choice.replica, chain)
        if bound:
            self._bound[request_id] = bound
        for key in bound.items():
            self._requests.setdefault(key, set()).add(request_id)
        self._latest |= bound
        return bound

    def of(self, request_id: str) -> Mapping[str, int]:
        """The replicas of an open request by group; empty if the request uses no group with replicas."""
        return self._bound.get(request_id, {})

    def release(self, request_id: str) -> None:
        """Note that a request has ended. Ignores unknown ids."""
        self._prompts.remove(request_id)
        for key in self._bound.pop(request_id, {}).items():
            self._requests[key].discard(request_id)

    def requests(self, group: str, replica: int) -> Collection[str]:
        """Ids of the open requests that use a replica."""
        return self._requests.get((group, replica), ())

    def routes(self) -> list[RouteReport]:
        """A report on each group for which a replica has been chosen."""
        return [RouteReport(group, choices, self._prompts.uses.get(group)) for group, choices in self._choices.items()]

    def _choose(self, group: str, replicas: Sequence[int], chain: PromptChain) -> Choice:
        candidates = [self._candidate(group, replica, chain) for replica in replicas]
        tokens = chain.tokens if group in self._prompts.groups else 0
        return choose(candidates, tokens, self._overload, self._latest.get(group, -1))

    def _candidate(self, group: str, replica: int, chain: PromptChain) -> Candidate:
        open_requests = len(self.requests(group, replica))
        if group not in self._prompts.groups:
            return Candidate(replica, open_requests)
        load = self._prompts.waiting(group, replica) + OPEN_TOKENS * open_requests
        return Candidate(replica, load, self._prompts.cached(group, replica, chain))
