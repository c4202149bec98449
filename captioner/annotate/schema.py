"""The tables of a project file, and how files of older versions are brought forward.

Rows are added, never rewritten: every caption ever made stays in `captions`, every act of a reviewer in `decisions`.
What follows from them for an image is kept in its own row, so that lists are quick: `suggestion` is the model's latest
caption, `words` what a person gave with the photo (a sidecar, embedded metadata), `verdict` the decision in force, and
`caption` the one that counts. `Project` alone writes these, by the rules of `Project.settle`.

Other rooms read the view `annotations`, which keeps its columns whatever becomes of the tables.
"""

import sqlite3

from captioner.errors import CaptionerError

APPLICATION_ID = int.from_bytes(b"capt")
"""SQLite's `application_id` of a project file, by which `file` and we know one."""

MIGRATIONS = (
    """
    CREATE TABLE writers (             -- who wrote a caption
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL CHECK (kind IN ('model', 'person', 'sidecar', 'embedded')),
        name TEXT NOT NULL,            -- of the model or the person; of files, what they say of themselves, or ''
        version TEXT NOT NULL,         -- of a model: the digest of its files
        options TEXT NOT NULL,         -- of a model: precision and generation options, a JSON object
        UNIQUE (kind, name, version, options)
    );
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        started REAL NOT NULL,         -- seconds since 1970, as all times
        finished REAL,                 -- NULL: still at work, or stopped
        writer INTEGER REFERENCES writers(id),
        since INTEGER NOT NULL DEFAULT 0,    -- suggestions of earlier runs are made again; 0: those of none
        renamed INTEGER NOT NULL DEFAULT 0   -- images that were found again under another name
    );
    CREATE TABLE images (
        id INTEGER PRIMARY KEY,
        path TEXT NOT NULL,            -- from the project file's folder, with /; of the archive that holds the image
        member TEXT NOT NULL,          -- the image's name in the archive, or ''
        size INTEGER NOT NULL,         -- bytes
        mtime INTEGER NOT NULL,        -- nanoseconds since 1970
        hash TEXT,                     -- XXH3-128 of the bytes, in hex; NULL: not read yet
        stale INTEGER NOT NULL DEFAULT 0,    -- 1: size or mtime are others than when the hash was taken
        sidecars TEXT NOT NULL DEFAULT '',   -- sizes and times of the files beside it when their words were read
        phash TEXT,                    -- perceptual hash of the picture, 64 bits in hex
        width INTEGER,                 -- pixels of the upright image
        height INTEGER,
        error TEXT,                    -- why it cannot be captioned: `ImageError.reason`
        message TEXT,                  -- the same in words
        missing INTEGER NOT NULL DEFAULT 0,  -- 1: no longer there
        seen INTEGER REFERENCES runs(id),    -- the last run that was given it
        near INTEGER,                  -- images that look alike have the same number
        reviewer TEXT,                 -- whose share it is
        version INTEGER NOT NULL DEFAULT 0,  -- how many decisions there were: guards against two reviewers at once
        suggestion INTEGER REFERENCES captions(id),
        words INTEGER REFERENCES captions(id),
        verdict TEXT CHECK (verdict IN ('accepted', 'edited', 'rejected')),
        caption INTEGER REFERENCES captions(id),
        UNIQUE (path, member)
    );
    CREATE INDEX images_by_hash ON images(hash);
    CREATE INDEX images_by_seen ON images(seen);
    CREATE TABLE captions (
        id INTEGER PRIMARY KEY,
        image INTEGER NOT NULL REFERENCES images(id),
        text TEXT NOT NULL,
        style TEXT NOT NULL,           -- 'caption' or 'alt'
        writer INTEGER NOT NULL REFERENCES writers(id),
        run INTEGER REFERENCES runs(id),
        copied INTEGER NOT NULL DEFAULT 0,  -- 1: made for another image with the same bytes
        made REAL NOT NULL,
        confidence REAL,               -- 0 to 1
        tokens TEXT,                   -- JSON [[text, log-probability], ...]
        words TEXT,                    -- JSON [[word, confidence], ...]
        alternatives TEXT,             -- JSON [{"caption", "confidence"}, ...]
        tags TEXT                      -- JSON [{"tag", "score"}, ...]
    );
    CREATE INDEX captions_by_image ON captions(image);
    CREATE INDEX captions_by_run ON captions(run);
    CREATE TABLE flags (               -- what needs eyes
        image INTEGER NOT NULL REFERENCES images(id),
        caption INTEGER NOT NULL,      -- 0: a flag of the photo, not of a caption
        name TEXT NOT NULL,
        detail TEXT NOT NULL,
        PRIMARY KEY (image, caption, name)
    ) WITHOUT ROWID;
    CREATE TABLE decisions (           -- of people, in the order in which they were made
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        image INTEGER NOT NULL REFERENCES images(id),
        version INTEGER NOT NULL,      -- of the image, after it
        action TEXT NOT NULL CHECK (action IN ('decide', 'undo', 'redo')),
        verdict TEXT CHECK (verdict IN ('accepted', 'edited', 'rejected')),  -- in force after it; NULL: none
        caption INTEGER REFERENCES captions(id),  -- that the verdict is about
        reviewer TEXT NOT NULL,
        decided REAL NOT NULL,
        UNIQUE (image, version)
    );
    CREATE VIEW annotations AS         -- one row an image that is there
        SELECT images.id, path, member, size, mtime, hash, phash, width, height, error, message, near, images.reviewer,
            images.version, verdict, seen,
            captions.id AS caption_id, captions.text AS caption, style, made, confidence, tokens, captions.words,
            alternatives, tags, kind AS writer_kind, name AS writer, writers.version AS writer_version, options,
            suggestion AS suggestion_id, images.words AS words_id,
            (SELECT reviewer FROM decisions WHERE image = images.id ORDER BY version DESC LIMIT 1) AS decided_by,
            (SELECT decided FROM decisions WHERE image = images.id ORDER BY version DESC LIMIT 1) AS decided
        FROM images
        LEFT JOIN captions ON captions.id = images.caption
        LEFT JOIN writers ON writers.id = captions.writer
        WHERE NOT missing;
    """,
)
"""Step i brings a file from version i to i + 1. A released step is never edited."""


def migrate(connection: sqlite3.Connection, name: str) -> None:
    """Bring an open project file, or an empty one, to the newest version.

    Raises:
        CaptionerError: another program's file, or one of a newer version.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID and (tables or version or application):
        raise CaptionerError(f"{name}: an SQLite file of another program, not a caption project")
    if version > len(MIGRATIONS):
        raise CaptionerError(f"{name}: written by a newer version of captioner; update this one to open it")
    if version == len(MIGRATIONS):
        return
    steps = "".join(MIGRATIONS[version:])
    connection.executescript(
        f"BEGIN IMMEDIATE; {steps} PRAGMA application_id = {APPLICATION_ID}; "
        f"PRAGMA user_version = {len(MIGRATIONS)}; COMMIT;"
    )
