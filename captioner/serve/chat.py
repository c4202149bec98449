"""What the chat protocols of others have in common: the last message with images is answered by their captions."""

from collections.abc import Sequence
from typing import NamedTuple

from starlette.requests import Request

from captioner.serve.errors import RequestError
from captioner.serve.requests import client_of, service_of, while_connected
from captioner.serve.schemas import Failed, Options
from captioner.serve.service import Described
from captioner.serve.uploads import upload


class Reply(NamedTuple):
    """A caption, or one for each of several images on lines of its own, and the number of its tokens."""

    text: str
    num_tokens: int


async def replies(
    request: Request, images: Sequence[str], max_tokens: int | None, count: int = 1
) -> tuple[list[Reply], list[Described]]:
    """Caption the images of a message, `count` times.

    Args:
        images: in base64, or as data URLs.

    Raises:
        RequestError: there are no images, or one of them cannot be captioned.
    """
    if not images:
        raise RequestError(400, "no_images", "no image in the messages; this server captions images")
    service = service_of(request)
    options = Options(
        max_new_tokens=None if max_tokens is None else min(max_tokens, 1024),
        num_return_sequences=None if count == 1 else count,
    )
    uploads = [upload(image, f"image {number}") for number, image in enumerate(images, 1)]
    results = await while_connected(request, service.caption(client_of(request), uploads, options))
    described = []
    for result in results:
        if isinstance(result, Failed):
            raise RequestError(400, result.error, f"{result.image}: {result.message}")
        described.append(result)
    candidates = [(one.caption, *one.caption.alternatives) for one in described]
    return [
        Reply("\n".join(caption.text for caption in chosen), sum(len(caption.tokens) for caption in chosen))
        for chosen in zip(*candidates, strict=False)
    ], described


def pieces(text: str) -> list[str]:
    """A text as a stream sends it: word by word, which together are the text."""
    words = text.split(" ")
    return [word + " " for word in words[:-1]] + words[-1:]
