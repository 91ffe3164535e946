"""What came of all cases: counts, and every case that must not be, kept so that it can be sent again."""

from __future__ import annotations

from msgspec import Struct

# Answers of a server that is well and says that it cannot now.
DELIBERATE = {"too_many_requests", "slow_reader", "shutting_down", "not_ready", "too_many_connections"}
# What the one request that a crash hurts may get.
CRASHED = {"worker_lost"}
_SLOWEST = 10


class Finding(Struct):
    """A case that must not be.

    Attributes:
        case: Its number, which with the seed gives the request again.
        what: The case in words.
        problem: What is wrong about the answer.
    """

    case: int
    what: str
    problem: str


class FuzzReport(Struct):
    """The result of one run.

    Attributes:
        outcomes: Cases by part and by status with code.
        findings: Cases that must not be.
        crashes: Cases that a worker died of.
        slowest: Seconds and case.
        restarts: Of each worker during the run, as `/metrics` has them.
    """

    part: str
    seed: int
    first: int
    cases: int = 0
    seconds: float = 0.0
    outcomes: dict[str, int] = {}
    findings: list[Finding] = []
    crashes: list[Finding] = []
    slowest: list[tuple[float, int, str]] = []
    restarts: dict[str, float] = {}

    def count(self, case: int, what: str, outcome: str, seconds: float) -> None:
        """One more case with this outcome."""
        self.cases += 1
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.slowest = sorted([*self.slowest, (round(seconds, 2), case, what)], reverse=True)[:_SLOWEST]

    def judge(self, case: int, what: str, status: int, code: str | None) -> None:
        """Keep it if a server must not answer so."""
        if status < 500 or (status == 503 and code in DELIBERATE):
            return
        finding = Finding(case, what, f"status {status}, code {code}")
        (self.crashes if code in CRASHED else self.findings).append(finding)

    @property
    def good(self) -> bool:
        """Whether no case was answered in a way that must not be, and each crash hurt one request only."""
        return not self.findings and sum(self.restarts.values()) >= len(self.crashes)
