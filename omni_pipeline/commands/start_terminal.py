"""Shows the progress of the server's start to people: as lines of text and, on a terminal, also with a spinner."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from omni_pipeline import __version__
from omni_pipeline.deployment.resolve import Deployment
from omni_pipeline.supervision.fork_server import Preloaded
from omni_pipeline.supervision.worker_lifecycle import StartProgress


class Terminal:
    """A `service.Display` on a console. As a context manager, ends the spinner."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status = console.status("")
        self._loading: list[str] = []
        self._total = 0

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._status.stop()

    def begin(self, deployment: Deployment) -> None:
        self._loading = [worker.name for worker in deployment.workers if not worker.spare]
        self._total = len(self._loading)
        device = "cuda" if deployment.uses_cuda else "cpu"
        workers = f"{self._total} worker{'s' if self._total > 1 else ''}"
        self._line(f"[bold]sgl-omni {__version__}[/] · {escape(deployment.model_path)} · {workers} · {device}")
        self._status.update("importing libraries")
        self._status.start()

    def note(self, text: str) -> None:
        self._line(f"  {escape(text)}")

    def progress(self, event: StartProgress) -> None:
        if isinstance(event, Preloaded):
            self._line(f"  libraries imported in {event.seconds:.1f} s")
        else:
            self._loading.remove(event.worker)
            done = self._total - len(self._loading)
            self._line(f"  [green]✓[/] {event.worker} loaded in {event.seconds:.1f} s ({done}/{self._total})")
        self._status.update(f"loading {', '.join(self._loading)}")

    def loaded(self, url: str, seconds: float) -> None:
        self._line(f"[bold]Listening on {url}[/] after {seconds:.1f} s, warming up")
        self._status.update("answering a first request")

    def ready(self, url: str, seconds: float) -> None:
        self._status.stop()
        self._line(
            f"[bold green]Ready[/] after {seconds:.1f} s. Health at {url}/health. Open {url} in a browser, or try:"
        )
        self._line(f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\")
        self._line("""    -d '{"messages": [{"role": "user", "content": "Hello!"}]}'""")

    def stopping(self) -> None:
        self._status.stop()
        self._line("Stopping. Press Ctrl-C again to stop at once.")

    def _line(self, markup: str) -> None:
        self._console.print(markup, highlight=False, soft_wrap=True)
