"""The peer of benchmarks/serving.py: LitServe (https://lightning.ai/docs/litserve), written as its documentation shows.

python benchmarks/litserve_peer.py BATCH_SIZE [MODEL]
"""

import base64
import sys
from typing import Any

import litserve

from captioner import Captioner

PORT = 8791


class Peer(litserve.LitAPI):
    """Takes the same JSON as `POST /v1/captions`, with one image; answers with its caption."""

    model: str | None = None

    def setup(self, device: str) -> None:
        self.captioner = Captioner.from_pretrained(self.model)

    def decode_request(self, request: dict[str, Any]) -> bytes:
        return base64.b64decode(request["images"][0])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, images: list[bytes]) -> list[str]:
        return [caption.text for caption in self.captioner(images)]

    def unbatch(self, output: list[str]) -> list[str]:
        return output

    def encode_response(self, output: str) -> dict[str, str]:
        return {"caption": output}


def main() -> None:
    batch_size, *model = sys.argv[1:]
    api = Peer(max_batch_size=int(batch_size), batch_timeout=0.01)
    api.model = model[0] if model else None
    server = litserve.LitServer(api, accelerator="cpu", timeout=600)
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False)


if __name__ == "__main__":
    main()
