"""`captioner serve`: captions over HTTP."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from captioner.cli.shared import Backend, Device, Precision, load_captioner
from captioner.errors import CaptionerError
from captioner.web import LOOPBACK


def serve(
    model: Annotated[
        str | None, typer.Argument(help="A folder or a Hugging Face Hub id; default: the bundled model.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every interface.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that share the port, a model each.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, max=256, help="Most images computed together.")] = 16,
    token: Annotated[
        str | None, typer.Option(envvar="CAPTIONER_TOKEN", help="Clients must send this as bearer token.")
    ] = None,
    files: Annotated[
        Path | None, typer.Option(help="Folder in which the images of Label Studio's tasks are looked up.")
    ] = None,
    project: Annotated[
        Path | None, typer.Option(help="Project file that keeps the captions which people write in Label Studio.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    backend: Backend = "auto",
) -> None:
    """Serve captions over HTTP, with a page at / and the API described at /docs.

    It also speaks the protocols of OpenAI (/v1/chat/completions), Ollama (/api/generate, /api/chat) and Label Studio's
    ML backends, so that their clients can use it unchanged.

    Requests are logged to stderr as JSON lines, without what they hold. SIGTERM stops the server once it has answered
    everything it accepted.
    """
    try:
        from captioner.serve.batching import Limits
        from captioner.serve.settings import Settings
        from captioner.serve.supervisor import Supervisor, configure_logging, listen
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("captioner"):
            raise
        raise CaptionerError(f"serving needs {error.name}: pip install 'captioner[serve]'") from error
    from captioner.annotate.project import Project
    from captioner.hub.find import find_model

    find_model(model)  # a wrong name is an error now, not in every worker
    if project:
        Project(project).close()
    is_local = host in LOOPBACK
    settings = Settings(
        batching=Limits(batch_size),
        token=token or None,
        files=files,
        project=project,
        hosts=LOOPBACK if is_local else None,
    )
    listener = listen(host, port)
    configure_logging()
    if not is_local and not token:
        print("warning: anybody who reaches this port can use it; set CAPTIONER_TOKEN", file=sys.stderr)

    def announce() -> None:
        name = f"[{host}]" if ":" in host else host
        print(f"serving on http://{name}:{listener.getsockname()[1]}", file=sys.stderr, flush=True)

    supervisor = Supervisor(
        partial(load_captioner, model, device, precision, backend=backend), settings, listener, workers
    )
    raise typer.Exit(supervisor.run(announce))
