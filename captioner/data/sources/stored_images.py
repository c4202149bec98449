"""Encoded images that stay where they are until they are decoded: in a table, or in a tar file."""

from dataclasses import dataclass, field
from typing import Any, BinaryIO


@dataclass(frozen=True)
class StoredImage:
    """An encoded image in a table on disk: read when it is decoded, so that a table larger than memory will do.

    Two are equal if they hold the same picture.
    """

    where: str = field(compare=False)
    table: Any = field(compare=False, repr=False)
    row: int = field(compare=False)
    column: str = field(compare=False)
    key: bytes | int

    def read(self) -> bytes:
        data: bytes = self.table[self.row][self.column]["bytes"]
        return data

    def __str__(self) -> str:
        return self.where


@dataclass(frozen=True, slots=True)
class ShardMember:
    """A file in a tar file: where its bytes are."""

    path: str
    member: str
    offset: int
    size: int

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            return self.read_from(file)

    def read_from(self, shard: BinaryIO) -> bytes:
        shard.seek(self.offset)
        return shard.read(self.size)

    def __str__(self) -> str:
        return f"{self.path}: {self.member}"
