"""Photos that look alike: found by their pictures, listed, and given one suggestion."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stub_captioner import StubCaptioner, update_with

from captioner.annotate.near_duplicates import MAX_DISTANCE, look_alikes
from captioner.annotate.project import Project
from captioner.errors import CaptionerError


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures, one of them also smaller, recompressed and a little brighter."""
    pytest.importorskip("imagehash", reason="ImageHash is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    draw = np.random.default_rng(0)
    one, other = (Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)) for _ in range(2))
    one = one.resize((240, 180), Image.Resampling.BICUBIC)
    one.save("photos/a.png")
    one.resize((160, 120)).point(lambda value: min(255, value + 6)).save("photos/b.jpg", quality=60)
    other.resize((240, 180), Image.Resampling.BICUBIC).save("photos/c.png")
    return Path("photos")


def state() -> list[tuple[int | None, str]]:
    with Project("a.captions") as project:
        return [tuple(row) for row in project.rows("SELECT near, caption FROM annotations ORDER BY path")]


def test_look_alikes_share_the_most_confident_suggestion(photos):
    summary = update_with(StubCaptioner(), "a.captions", photos, near_duplicates=True)
    (first, text), (second, other), (alone, different) = state()
    assert first == second is not None and alone is None
    assert text == other != different
    assert (summary.captioned, summary.copied, summary.look_alikes) == (3, 1, 2)
    before = state()
    assert update_with(None, "a.captions", photos, near_duplicates=True).copied == 0
    assert state() == before


def test_people_s_words_stay(photos):
    update_with(StubCaptioner(), "a.captions", photos)
    with Project("a.captions") as project:
        project.decide(2, 1, "edited", "ann", "Rex")
    update_with(None, "a.captions", photos, near_duplicates=True)
    assert [caption for _, caption in state()][1] == "Rex"
    with Project("a.captions") as project:
        model = project.rows("SELECT caption FROM annotations ORDER BY path")[0]["caption"]
        differ = [project.flags(image).get("look_alikes_differ") for image in (1, 2, 3)]
        assert differ == ["Rex", model, None]
        project.decide(2, 2, "edited", "ann", model)
    update_with(None, "a.captions", photos, near_duplicates=True)
    with Project("a.captions") as project:
        assert "look_alikes_differ" not in project.flags(1) | project.flags(2)


def test_an_image_that_is_damaged_does_not_stop_it(photos):
    (photos / "d.png").write_bytes(b"broken")
    assert update_with(StubCaptioner(), "a.captions", photos, near_duplicates=True).look_alikes == 2


def test_the_missing_library_is_named_with_its_extra(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(CaptionerError, match=r"captioner\[duplicates\]"):
        update_with(StubCaptioner(), "a.captions", photos, near_duplicates=True)
    assert len(state()) == 3, "the captions are there all the same"


def test_groups_are_those_of_comparing_every_pair():
    draw = np.random.default_rng(1)
    hashes = draw.integers(0, 2**64, 300, dtype=np.uint64)
    for copy in range(60):
        bits = draw.choice(64, draw.integers(0, 10), replace=False).astype(np.uint64)
        hashes[240 + copy] = hashes[copy] ^ np.bitwise_or.reduce(np.uint64(1) << bits, initial=np.uint64(0))
    groups = {index: {index} for index in range(300)}
    for first in range(300):
        for second in range(first):
            if np.bitwise_count(hashes[first] ^ hashes[second]) <= MAX_DISTANCE:
                groups[first] |= groups[second]
                for index in groups[first]:
                    groups[index] = groups[first]
    expected = {tuple(sorted(group)) for group in groups.values() if len(group) > 1}
    assert {tuple(group) for group in look_alikes(hashes)} == expected
    assert 10 < len(expected) < 60
    assert look_alikes(np.array([], dtype=np.uint64)) == []
