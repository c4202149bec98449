"""What a server allows."""

from dataclasses import dataclass, field
from pathlib import Path

from captioner.serve.batching import Limits

MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """Bounds on what clients may send, and who may send it.

    Attributes:
        batching: how batches are formed, and how many images may wait.
        max_images: of a request.
        max_body: bytes of a request's body, and of each image in it.
        max_bodies: bytes of all bodies that are held at one time.
        max_pixels: width times height of an image, checked before it is decoded.
        max_header: bytes of a request's line and headers.
        max_connections: open at one time; further ones get 503.
        header_seconds: within which a request's headers have to arrive.
        pause_seconds: the longest pause in an upload.
        upload_seconds: within which a body has to arrive.
        request_seconds: within which a request whose body has arrived is answered; then it gives up its places.
        token: what clients have to send as bearer token, or as password; None admits everybody.
        files: the folder under which Label Studio's tasks name images; None: tasks have to hold data URLs.
        project: the project file that keeps what people write in Label Studio; None: nothing is kept.
        hosts: names by which clients may address the server (the `Host` header); None allows all.
    """

    batching: Limits = field(default_factory=Limits)
    max_images: int = 32
    max_body: int = 64 * MIB
    max_bodies: int = 512 * MIB
    max_pixels: int = 64_000_000
    max_header: int = 32 * 1024
    max_connections: int = 1000
    header_seconds: float = 10.0
    pause_seconds: float = 10.0
    upload_seconds: float = 60.0
    request_seconds: float = 60.0
    token: str | None = None
    files: Path | None = None
    project: Path | None = None
    hosts: tuple[str, ...] | None = None
