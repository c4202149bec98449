"""Words that people gave with a photo: read from sidecars and metadata, kept, and merged by the rules."""

import os
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from stub_captioner import StubCaptioner, update_with

from captioner.annotate.project import Project
from captioner.data.xmp import read_xmp, xmp_packet

XMP = xmp_packet({"description": "Rex, our dog", "writer": "Ann"})


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (9, 8), (1, 2, 3)).save("a.jpg")
    return Path("a.jpg")


def update(**request: object):
    return update_with(StubCaptioner(), "a.captions", "a.jpg", **request)


def caption() -> str | None:
    with Project("a.captions") as project:
        return project.rows("SELECT caption FROM annotations")[0][0]


def flags() -> dict[str, str]:
    with Project("a.captions") as project:
        return {name: detail for name, detail in project.flags(1).items() if name != "near_black"}  # the test photos


def edit(text: str) -> None:
    with Project("a.captions") as project:
        project.decide(1, project.image(1).version, "edited", "ann", text)


@pytest.mark.parametrize(
    ("sidecar", "content"),
    [
        ("a.txt", "Rex, our dog\n"),
        ("a.caption", "\n Rex,  our dog \r\nsecond line\n"),
        ("a.jpg.xmp", XMP),
        ("a.xmp", XMP),
    ],
)
def test_a_sidecar_is_read_and_the_model_is_not_asked(photo, sidecar, content):
    Path(sidecar).write_text(content, encoding="utf-8", newline="")
    summary = update()
    assert (summary.captioned, summary.by_people) == (0, 1)
    assert caption() == "Rex, our dog" and Path(sidecar).read_bytes() == content.encode()


def save_with(description: dict[str, object]) -> None:
    Image.new("RGB", (9, 8), (1, 2, 3)).save("a.jpg", **description)


def exif(text: str) -> Image.Exif:
    tags = Image.Exif()
    tags[0x010E] = text
    return tags


def test_descriptions_in_exif_and_xmp_are_read(photo):
    save_with({"exif": exif("Rex, our dog")})
    assert update().by_people == 1 and caption() == "Rex, our dog"
    save_with({"exif": exif("camera's"), "xmp": XMP.encode()})
    update()
    assert caption() == "Rex, our dog"


def test_a_description_in_a_png_is_read(photo):
    info = PngInfo()
    info.add_text("Description", "Rex, our dog")
    Image.new("RGB", (9, 8), (1, 2, 3)).save("b.png", pnginfo=info)
    assert update_with(StubCaptioner(), "b.captions", "b.png").by_people == 1


@pytest.mark.parametrize(
    "text", ["OLYMPUS DIGITAL CAMERA", "SONY DSC", "DCIM100MEDIA"[:4], "Exif_JPEG_420"[:9], "...", " "]
)
def test_what_cameras_write_is_no_description(photo, text):
    save_with({"exif": exif(text)})
    assert update().captioned == 1


@pytest.mark.parametrize("content", [b"", b"\n \n", b"...\n", b"\xff\xfe\xff\xff", b"a\0b\n", b"x" * 20_000])
def test_a_sidecar_without_usable_words_leaves_the_photo_to_the_model(photo, content):
    Path("a.txt").write_bytes(content)
    assert update().captioned == 1


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"no xml",
        b"<a>",
        b'<!DOCTYPE x [<!ENTITY a "aaaa">]><x:xmpmeta xmlns:x="adobe:ns:meta/">&a;</x:xmpmeta>',
        XMP.encode()[:200],
        XMP.encode("utf-16"),
    ],
)
def test_a_packet_that_cannot_be_used_has_no_words(photo, packet):
    Path("a.jpg.xmp").write_bytes(packet)
    assert update().failed.total() == 0


def test_xmp_written_as_attributes_and_in_several_languages_is_read():
    packet = XMP.replace(
        '<rdf:li xml:lang="x-default">', '<rdf:li xml:lang="de">Rex, unser Hund</rdf:li><rdf:li xml:lang="x-default">'
    )
    assert read_xmp(packet.encode())["description"] == "Rex, our dog"
    space = 'xmlns:dc="http://purl.org/dc/elements/1.1/"'
    short = f'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" {space}>'
    short += '<rdf:Description dc:description="Rex"/></rdf:RDF>'
    assert read_xmp(short.encode()) == {"description": "Rex"}


def test_xmp_keeps_hostile_text_as_text():
    text = "<script>&amp; ]]> \"quoted\" 'too' é 🐕"
    assert read_xmp(xmp_packet({"description": text, "alt": text}).encode()) == {"description": text, "alt": text}


# Merging


def test_a_changed_sidecar_counts_and_the_old_words_are_kept(photo):
    Path("a.txt").write_text("Rex\n")
    update()
    Path("a.txt").write_text("Rex on the beach\n")
    update()
    assert caption() == "Rex on the beach" and flags() == {}
    with Project("a.captions") as project:
        assert [each.text for each in project.captions(1)] == ["Rex", "Rex on the beach"]


def test_a_sidecar_that_comes_after_the_model_beats_it(photo):
    update()
    Path("a.txt").write_text("Rex\n")
    assert update().by_people == 1
    assert caption() == "Rex" and flags() == {}


def test_a_sidecar_that_goes_leaves_its_words(photo):
    Path("a.txt").write_text("Rex\n")
    update()
    Path("a.txt").unlink()
    update()
    assert caption() == "Rex"


def test_an_edit_survives_an_unchanged_sidecar_and_a_new_suggestion(photo):
    Path("a.txt").write_text("Rex\n")
    update()
    edit("Rex on sand")
    os.utime("a.txt", (1, 1))
    update(overwrite=True)
    assert caption() == "Rex on sand" and flags() == {}


def test_two_people_s_changes_are_both_kept_and_flagged(photo):
    Path("a.txt").write_text("Rex\n")
    update()
    edit("Rex on sand")
    Path("a.txt").write_text("Rex at the sea\n")
    update(overwrite=True)
    assert caption() == "Rex on sand"
    assert flags() == {"two texts": "sidecar: Rex at the sea"}
    with Project("a.captions") as project:
        assert {each.text for each in project.captions(1)} == {"Rex", "Rex on sand", "Rex at the sea"}


def test_two_people_who_agree_are_not_flagged(photo):
    update()
    edit("Rex")
    Path("a.txt").write_text("Rex\n")
    update()
    assert caption() == "Rex" and flags() == {}


def test_sidecar_and_metadata_that_differ_are_both_kept_and_flagged(photo):
    save_with({"exif": exif("in the file")})
    Path("a.txt").write_text("beside it\n")
    update()
    assert caption() == "beside it" and flags() == {"two texts": "embedded: in the file"}


def test_a_rename_takes_the_sidecar_along(photo):
    Path("a.txt").write_text("Rex\n")
    update()
    Path("a.jpg").rename("b.jpg")
    Path("a.txt").rename("b.txt")
    summary = update_with(StubCaptioner(), "a.captions", "b.jpg")
    assert (summary.renamed, summary.captioned) == (1, 0)
    with Project("a.captions") as project:
        assert [(row["path"], row["caption"]) for row in project.rows("SELECT * FROM annotations")] == [
            ("b.jpg", "Rex")
        ]
        assert len(project.captions(1)) == 1 and project.image(1).words


def test_a_photo_that_changes_under_a_person_s_words_is_flagged(photo):
    update()
    edit("Rex")
    Image.new("RGB", (9, 8), (200, 2, 3)).save("a.jpg")
    assert update().captioned == 0
    assert caption() == "Rex" and "photo changed" in flags()
