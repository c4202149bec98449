"""Finds photos that look alike, by perceptual hashes (of the DCT, 64 bits), and lets them share a suggestion."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from captioner.annotate.pipeline import map_ahead
from captioner.annotate.project import Project
from captioner.annotate.project_records import ProjectImage
from captioner.annotate.runs import open_image
from captioner.annotate.scan import CHUNK
from captioner.data.images import ImageError, load_image
from captioner.errors import CaptionerError

MAX_DISTANCE = 6
"""Bits in which the hashes of photos that look alike differ at most."""

DIFFER = "look_alikes_differ"
"""The flag of photos that look alike and whose captions differ; its detail is another's caption."""

HASH_PIXELS = 64
"""Pixels that the shorter side keeps: the hash is of 32 x 32."""


def find_near_duplicates(project: Project, run: int, num_workers: int) -> int:
    """Number the groups of photos that look alike, in `images.near`, and give each group its most confident suggestion.

    What a person wrote or decided stays; where captions of a group then differ, its photos have the flag
    `look_alikes_differ`.

    Returns:
        How many images are in groups.

    Raises:
        CaptionerError: ImageHash is not installed.
    """
    image_hash = _library()

    def look(image: ProjectImage) -> tuple[int, str | None]:
        try:
            picture = load_image(open_image(project, image), HASH_PIXELS)
        except ImageError:
            return image.id, None
        return image.id, str(image_hash.phash(picture))

    for identifier, code in map_ahead(look, _unhashed(project), num_workers, ahead=4 * num_workers):
        if code is not None:
            with project.transaction() as connection:
                connection.execute("UPDATE images SET phash = ? WHERE id = ?", (code, identifier))
    rows = project.rows("SELECT id, phash FROM images WHERE phash IS NOT NULL AND NOT missing ORDER BY id")
    hashes = np.array([int(row["phash"], 16) for row in rows], dtype=np.uint64)
    groups = look_alikes(hashes)
    with project.transaction() as connection:
        connection.execute("UPDATE images SET near = NULL WHERE near IS NOT NULL")
        connection.execute("DELETE FROM flags WHERE name = ?", (DIFFER,))
        for group in groups:
            members = [rows[index]["id"] for index in group]
            values = [(members[0], member) for member in members]
            connection.executemany("UPDATE images SET near = ? WHERE id = ?", values)
            _share(project, members, run)
            _flag_differing(project, members)
    return sum(map(len, groups))


def look_alikes(hashes: np.ndarray) -> list[list[int]]:
    """Group hashes, uint64 [N], that are within `MAX_DISTANCE` bits of another in the group; indices in order.

    Two hashes that differ in fewer than 8 bits have one of their 8 bytes in common, so only those are compared.
    """
    parents = np.arange(len(hashes))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = int(parents[index])
        return index

    for byte in range(8):
        keys = (hashes >> np.uint64(8 * byte)) & np.uint64(255)
        order = np.argsort(keys, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            for position, index in enumerate(bucket):
                others = bucket[position + 1 :]
                close = np.bitwise_count(hashes[others] ^ hashes[index]) <= MAX_DISTANCE
                for other in others[close]:
                    first, second = sorted((root(int(index)), root(int(other))))
                    parents[second] = first
    groups: dict[int, list[int]] = {}
    for index in range(len(hashes)):
        groups.setdefault(root(index), []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _unhashed(project: Project) -> Iterator[ProjectImage]:
    last = 0
    condition = f"id > ? AND phash IS NULL AND error IS NULL AND NOT missing ORDER BY id LIMIT {CHUNK}"
    while images := project.images(condition, last):
        yield from images
        last = images[-1].id


def _share(project: Project, members: list[int], run: int) -> None:
    marks = ", ".join("?" * len(members))
    suggestions = project.rows(
        f"""SELECT images.id, text, confidence FROM images JOIN captions ON captions.id = suggestion
        WHERE images.id IN ({marks}) ORDER BY confidence DESC""",
        *members,
    )
    for row in suggestions[1:]:
        if row["text"] != suggestions[0]["text"]:
            project.copy_suggestion(suggestions[0]["id"], row["id"], run)


def _flag_differing(project: Project, members: list[int]) -> None:
    marks = ", ".join("?" * len(members))
    captions = "SELECT images.id, text FROM images JOIN captions ON captions.id = images.caption"
    texts = {row["id"]: row["text"] for row in project.rows(f"{captions} WHERE images.id IN ({marks})", *members)}
    for image, text in texts.items():
        if others := [other for other in texts.values() if other != text]:
            project.flag(image, DIFFER, others[0])


def _library() -> Any:
    try:
        import imagehash
    except ImportError as error:
        raise CaptionerError("--near-duplicates needs ImageHash: pip install 'captioner[duplicates]'") from error
    return imagehash
