"""References to encoded images in tables and tar files, which are read when they are decoded."""

from dataclasses import dataclass, field
from typing import Any, BinaryIO


@dataclass(frozen=True)
class StoredImage:
    """An encoded image in a table on disk. It is only read when it is decoded, so tables may be larger than memory.

    Two are equal if their `key`, a digest of the image or a row number, is equal.
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
    """The position of a file in a tar file."""

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
