"""Keeps the results of a fuzzing run: counts, and each case with a wrong answer, so that it can be sent again."""

from __future__ import annotations

from msgspec import Struct

# Error codes with which a healthy server refuses a request that can succeed later.
DELIBERATE = {"too_many_requests", "slow_reader", "shutting_down", "not_ready", "too_many_connections"}
# The error code of a request whose worker has died. A crash must not affect any other request.
CRASHED = {"worker_lost"}
_SLOWEST = 10


class FuzzFinding(Struct):
    """A case with a wrong answer.

    Attributes:
        case: Number of the case. The number and the seed reproduce the request.
        what: A description of the case.
        problem: What is wrong with the answer.
    """

    case: int
    what: str
    problem: str


class FuzzReport(Struct):
    """The result of one run.

    Attributes:
        outcomes: The number of cases for each combination of kind, status and code.
        findings: Cases with a wrong answer.
        crashes: Cases in which a worker died.
        slowest: The slowest cases. Each entry has the duration in seconds, the number and the description of the case.
        restarts: The restarts of each worker during the run, from `/metrics`.
    """

    part: str
    seed: int
    first: int
    cases: int = 0
    seconds: float = 0.0
    outcomes: dict[str, int] = {}
    findings: list[FuzzFinding] = []
    crashes: list[FuzzFinding] = []
    slowest: list[tuple[float, int, str]] = []
    restarts: dict[str, float] = {}

    def count(self, case: int, what: str, outcome: str, seconds: float) -> None:
        """Count a case with its outcome."""
        self.cases += 1
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.slowest = sorted([*self.slowest, (round(seconds, 2), case, what)], reverse=True)[:_SLOWEST]

    def judge(self, case: int, what: str, status: int, code: str | None) -> None:
        """Keep the case if a server must not answer with this status and code."""
        if status < 500 or (status == 503 and code in DELIBERATE):
            return
        finding = FuzzFinding(case, what, f"status {status}, code {code}")
        (self.crashes if code in CRASHED else self.findings).append(finding)

    @property
    def good(self) -> bool:
        """Whether no answer was wrong, and each crash affected only one request."""
        return not self.findings and sum(self.restarts.values()) >= len(self.crashes)
