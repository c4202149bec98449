"""Captions without images: every encoding that says what it is, and no line without a word."""

from pathlib import Path

import pytest

from captioner.data.text_files import decode_text, load_text
from captioner.errors import CaptionerError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_lines_are_captions(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.txt").write_bytes(" a café \r\n\r\n两只狗\n...\n".encode(encoding))
    skipped: list[tuple[str, str]] = []
    assert load_text(str(tmp_path / "x.txt"), lambda *skip: skipped.append(skip)) == ["a café", "两只狗"]
    assert skipped == [(f"{tmp_path / 'x.txt'}:4", "the caption holds no word: '...'")]


def test_a_line_separator_within_a_caption_ends_no_line(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("one\u2028still one\ntwo")
    assert load_text(str(tmp_path / "x.txt"), pytest.fail) == ["one\u2028still one", "two"]


def test_files_without_captions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    for content, message in [
        (b"", "no captions"),
        (b"...\n \n", "no captions"),
        ("a\na café\n".encode("cp1252"), "x.txt:2: not valid Unicode text: .*perhaps Windows-1252, 'a café'"),
    ]:
        path.write_bytes(content)
        with pytest.raises(CaptionerError, match=message):
            load_text(str(path), lambda *_: None)
    with pytest.raises(CaptionerError, match="none: cannot be read: No such file or directory"):
        load_text(str(tmp_path / "none"), pytest.fail)


def test_short_and_empty_texts_are_decoded() -> None:
    assert [decode_text(data) for data in (b"", b"a", b"ab", "ab".encode("utf-16-le"))] == ["", "a", "ab", "ab"]
