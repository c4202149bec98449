"""Finds the image files that tables name."""

import os
import unicodedata

from captioner.data.images import is_url
from captioner.data.sources.sample import Report
from captioner.errors import CaptionerError


def normalized_name(name: str) -> str:
    """Normalize a name as case-insensitive file systems do: ignore case and Unicode composition (NFC or NFD)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class ImageFolders:
    """Finds the images that a source names. Results are cached: a table names an image once for each caption.

    If there is no exact match, case, Unicode composition and backslashes are ignored, and exactly one file must match.

    Names in a user's own file may be absolute or contain `..`: the user may read those images. Data sets from the Hub
    are written by others, so their names must stay inside the folders (`confined`).
    """

    def __init__(self, chosen: str | None, defaults: list[str], confined: bool = False) -> None:
        self.folders = [os.path.expanduser(chosen)] if chosen else defaults
        self.confined = confined
        self.found: dict[str, str | None] = {}
        self.listed: dict[str, dict[str, list[str]]] = {}
        if chosen and not os.path.isdir(self.folders[0]):
            raise CaptionerError(f"{chosen}: no such folder of images")

    @classmethod
    def beside(cls, path: str, chosen: str | None) -> "ImageFolders":
        """For the names in a file: search `chosen`, by default the file's folder and images/ in it."""
        folder = os.path.dirname(path)
        return cls(chosen, [folder, os.path.join(folder, "images")])

    def find(self, where: str, report: Report, *names: object) -> str | None:
        """Return the path of the first name that exists; report if there is none."""
        for name in names:
            if not isinstance(name, str) or not name.strip():
                report(where, f"the image's name is {'empty' if name in (None, '') else f'not text: {name!r:.60}'}")
                return None
            if name not in self.found:
                self.found[name] = self._search(name)
            if path := self.found[name]:
                return path
        if is_url(str(names[0])):
            report(where, f"the image is missing: {names[0]!r:.200} is a URL, and URLs are not fetched")
            return None
        report(where, f"the image is missing: {names[0]!r} is not in {' or '.join(f or '.' for f in self.folders)}")
        return None

    def _search(self, name: str) -> str | None:
        spellings = [name, name.replace("\\", "/")] if os.sep == "/" and "\\" in name else [name]
        for resolve in (_exact_match, self._similar_match):
            for folder in self.folders:
                for spelling in spellings:
                    path = os.path.normpath(os.path.join(folder, spelling))
                    inside = os.path.abspath(path).startswith(os.path.abspath(folder) + os.sep)
                    if (inside or not self.confined) and (found := resolve(path)):
                        return found
        return None

    def _similar_match(self, path: str) -> str | None:
        drive, rest = os.path.splitdrive(path)
        place = drive + (os.sep if rest.startswith(os.sep) else "")
        for part in rest.strip(os.sep).split(os.sep):
            if not os.path.lexists(os.path.join(place, part)):
                likely = self._names_in(place).get(normalized_name(part), [])
                if len(likely) != 1:
                    return None
                part = likely[0]
            place = os.path.join(place, part)
        return _exact_match(place)

    def _names_in(self, folder: str) -> dict[str, list[str]]:
        if folder not in self.listed:
            names: dict[str, list[str]] = {}
            try:
                for name in os.listdir(folder or os.curdir):
                    names.setdefault(normalized_name(name), []).append(name)
            except OSError:
                pass  # no match in it
            self.listed[folder] = names
        return self.listed[folder]


def _exact_match(path: str) -> str | None:
    return path if os.path.isfile(path) else None
