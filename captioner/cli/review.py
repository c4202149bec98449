"""`captioner review`: check captions in the browser."""

import getpass
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from captioner.errors import CaptionerError


def review(
    project: Annotated[Path, typer.Argument(help="A project file, such as album.captions.")],
    reviewer: Annotated[
        str | None, typer.Option(help="Your name, which decisions are kept under; default: your user name.")
    ] = None,
    assign: Annotated[str | None, typer.Option(help="Make this part of the photos your share, such as 2/3.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every interface.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; default: the first free one from 8600.")
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="Other people log in with the password on this file's first line.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Makes the heat maps; default: the model that wrote the captions.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the default browser.")] = True,
) -> None:
    """Check captions in the browser: accept, edit or reject them; nothing is lost, and everything can be undone.

    The server answers this machine alone, and only the browser that opens the URL it prints. Other people can review
    with you, each under their own name, with --host and --password-file.
    """
    try:
        from captioner.review.access import Access, read_password
        from captioner.review.app import create_app
        from captioner.review.server import Server, listen, open_browser
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("captioner"):
            raise
        raise CaptionerError(f"review needs {error.name}: pip install 'captioner[review]'") from error
    from captioner.annotate.project import Project
    from captioner.web import LOOPBACK

    if host not in LOOPBACK and password_file is None:
        raise CaptionerError(f"--host {host} lets other machines in: give --password-file, or leave --host out")
    password = read_password(password_file) if password_file else None
    name = " ".join((reviewer or _user()).split())
    if not name:
        raise CaptionerError("--reviewer: give a name")
    with Project(project) as opened:
        if assign:
            share, shares = _share(assign)
            count = opened.assign(name, share, shares)
            print(f"{name} reviews {count:,} photos, share {share} of {shares}", file=sys.stderr)
        with listen(host, port) as listener:
            number = listener.getsockname()[1]
            access = Access(name, number, host, password)
            shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
            url = f"http://{shown}:{number}/?token={access.token}"

            def announce() -> None:
                print(f"reviewing {project} on {url}", file=sys.stderr, flush=True)
                if password:
                    print(f"others log in at port {number} of this machine; Ctrl-C stops", file=sys.stderr, flush=True)
                if browser:
                    open_browser(url)

            Server(create_app(opened, access, model), announce).run(sockets=[listener])


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        return "reviewer"


def _share(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if not match:
        raise CaptionerError(f"--assign {text}: give a share such as 2/3")
    return int(match[1]), int(match[2])
