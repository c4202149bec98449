"""Text to token ids and back, for any backend; and the tokenizers that work without torch and transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from captioner.errors import CaptionerError


class Tokenizer(Protocol):
    """Text <-> ids."""

    def encode(self, text: str) -> list[int]:
        """Return a text's ids, without start or end of sequence. Special tokens in it are encoded as plain text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of these ids without special tokens."""

    def id_to_token(self, index: int) -> str:
        """Return a token as the tokenizer spells it; empty if only the decoder, whose table may be larger, has it."""

    def token_to_id(self, token: str) -> int:
        """Return the id of a token that `id_to_token` spelled."""


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read tokenizer.json, which converted models have, or tokenizer.model, a SentencePiece model as training makes it,
    with the library that the file needs and no other.

    Raises:
        CaptionerError: the folder has none that can be read, or its library is not installed.
    """
    fast, sentencepiece = folder / "tokenizer.json", folder / "tokenizer.model"
    path = fast if fast.is_file() else sentencepiece
    if not path.is_file():
        raise CaptionerError(f"{folder}: neither tokenizer.json nor tokenizer.model in it")
    try:
        return FastTokenizer(path) if path == fast else SentencePieceTokenizer(path)
    except ModuleNotFoundError as error:
        raise CaptionerError(f"{path} needs {error.name}: pip install {error.name}") from error
    except Exception as error:  # tokenizers' own have no other base
        raise CaptionerError(f"{path}: {error}") from error


class SentencePieceTokenizer:
    def __init__(self, path: Path) -> None:
        import sentencepiece

        self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def encode(self, text: str) -> list[int]:
        return self.model.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.model.decode([index for index in ids if not self._is_silent(index)])

    def _is_silent(self, index: int) -> bool:
        return index >= len(self.model) or self.model.is_control(index) or self.model.is_unknown(index)

    def id_to_token(self, index: int) -> str:
        return self.model.id_to_piece(index) if index < len(self.model) else ""

    def token_to_id(self, token: str) -> int:
        return self.model.piece_to_id(token)


class FastTokenizer:
    """A tokenizer of Hugging Face's tokenizers library."""

    def __init__(self, path: Path) -> None:
        import tokenizers

        self.model = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        self.model.no_padding()
        self.model.no_truncation()
        self.model.encode_special_tokens = True  # as text

    def encode(self, text: str) -> list[int]:
        return self.model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.model.decode(list(ids), skip_special_tokens=True)

    def id_to_token(self, index: int) -> str:
        return self.model.id_to_token(index) or ""

    def token_to_id(self, token: str) -> int:
        return self.model.token_to_id(token) or 0
