"""What reviewers do: decide, undo and redo, for one photo or for many at once."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from captioner.annotate.project import Project, stacks
from captioner.annotate.project_records import Decision, ProjectImage, Verdict
from captioner.data.caption_checks import MAX_CAPTION_CHARACTERS
from captioner.errors import CaptionerError
from captioner.review.queries import Selection

Number = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, Field(max_length=20 * MAX_CAPTION_CHARACTERS)]
"""The project has the stricter limit, after it has collapsed white space."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Decide(Strict):
    """A verdict on a photo; `version` is the photo's as the reviewer saw it."""

    id: Number
    version: Number
    verdict: Verdict
    text: Text | None = None


class Step(Strict):
    """Undo or redo: of one photo, or, without one, the reviewer's latest act wherever it was."""

    id: Number | None = None
    version: Number | None = None


class Bulk(Strict):
    """A verdict on many photos, given as (id, version)."""

    images: list[tuple[Number, Number]]
    verdict: Verdict
    text: Text | None = None


class Replace(Strict):
    """Replace `find` in the captions of photos. A preview takes a selection; then the photos it gave, with versions."""

    find: str = Field(min_length=1, max_length=1000)
    replace: str = Field(max_length=1000)
    whole_words: bool = False
    match_case: bool = False
    selection: Selection | None = None
    images: list[tuple[Number, Number]] | None = None

    def pattern(self) -> re.Pattern[str]:
        found = re.escape(self.find)
        return re.compile(rf"(?<!\w){found}(?!\w)" if self.whole_words else found, 0 if self.match_case else re.I)

    def apply(self, text: str) -> str:
        return self.pattern().sub(lambda match: self.replace, text)


class Outcome(BaseModel):
    """Which photos changed, and which were left alone with the reason."""

    changed: list[int]
    left: dict[int, str]


def decide(project: Project, act: Decide, reviewer: str) -> ProjectImage:
    """Raises as `Project.decide`."""
    return project.decide(act.id, act.version, act.verdict, reviewer, act.text)


def decide_many(project: Project, act: Bulk, reviewer: str) -> Outcome:
    """One act on many photos, in one transaction. Photos that have changed meanwhile are left alone."""
    return _in_one_act(project, [(image, version, act.text) for image, version in act.images], act.verdict, reviewer)


def replace_many(project: Project, act: Replace, reviewer: str) -> Outcome:
    """Replace in the captions of `act.images`, in one transaction. Captions without the words are left as they are."""
    texts = _texts(project, [image for image, _ in act.images or []])
    edits = [(image, version, act.apply(texts[image])) for image, version in act.images or [] if image in texts]
    changed = [edit for edit in edits if edit[2] != texts[edit[0]]]
    return _in_one_act(project, changed, "edited", reviewer)


def replacements(project: Project, act: Replace, images: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """What `replace_many` would change."""
    texts = _texts(project, [image for image, _ in images])
    after = {image: act.apply(text) for image, text in texts.items()}
    return [
        {"id": image, "version": version, "before": texts[image], "after": after[image]}
        for image, version in images
        if image in texts and after[image] != texts[image]
    ]


def _texts(project: Project, images: list[int]) -> dict[int, str]:
    """Captions in force; rejected photos have none."""
    wanted = set(images)
    rows = project.rows("SELECT id, caption FROM annotations WHERE caption IS NOT NULL")
    return {row["id"]: row["caption"] for row in rows if row["id"] in wanted}


def _in_one_act(
    project: Project, edits: Sequence[tuple[int, int, str | None]], verdict: Verdict, reviewer: str
) -> Outcome:
    outcome = Outcome(changed=[], left={})
    with project.transaction():
        for image, version, text in edits:
            current = project.images("id = ?", image)
            if not current or current[0].version != version:
                outcome.left[image] = "changed by somebody else meanwhile"
                continue
            try:
                project.decide(image, version, verdict, reviewer, text)
            except CaptionerError as error:
                outcome.left[image] = str(error)
            else:
                outcome.changed.append(image)
    return outcome


def step(project: Project, act: Step, action: Literal["undo", "redo"], reviewer: str) -> list[int]:
    """Undo or redo, and return the photos that changed.

    Raises:
        Conflict: the photo has changed meanwhile.
        CaptionerError: there is nothing to undo or redo.
    """
    take = project.undo if action == "undo" else project.redo
    if act.id is not None:
        return [take(act.id, act.version or 0, reviewer).id]
    with project.transaction():
        images = _latest_act(project, action, reviewer)
        if not images:
            raise CaptionerError(f"there is nothing to {action}")
        for image in images:
            take(image, project.image(image).version, reviewer)
    return images


def _latest_act(project: Project, action: Literal["undo", "redo"], reviewer: str) -> list[int]:
    """The photos of the reviewer's latest act that can be undone or redone.

    An act can be undone while no later decision lies over it, and redone while nobody has decided since it was undone.
    """
    looked_for = "decide" if action == "undo" else "undo"
    chosen: list[Decision] = []
    for decision in _own_decisions(project, reviewer):
        if chosen and decision.decided != chosen[0].decided:
            break
        if action == "redo" and decision.action == "decide":
            break
        if decision.action != looked_for:
            continue
        past = project.history(decision.image)
        made, _ = stacks(past)
        if action == "undo":
            is_open = bool(made) and made[-1].id == decision.id
        else:
            is_open = _undid_last(past, decision)
        if is_open:
            chosen.append(decision)
    return [decision.image for decision in chosen]


def _undid_last(past: list[Decision], undo: Decision) -> bool:
    """Is this the undo that a redo would take back? Later undos and redos of the photo have to cancel out."""
    depth = 0
    for decision in past:
        if decision.id > undo.id:
            depth += {"undo": 1, "redo": -1}.get(decision.action, -len(past))
            if depth < 0:
                return False
    return depth == 0


def _own_decisions(project: Project, reviewer: str) -> Iterator[Decision]:
    """All that a reviewer did, the latest first."""
    last = 2**62
    while rows := project.rows(
        """SELECT id, image, version, action, verdict, caption, reviewer, decided FROM decisions
        WHERE reviewer = ? AND id < ? ORDER BY id DESC LIMIT 200""",
        reviewer,
        last,
    ):
        for row in rows:
            yield Decision(*row)
        last = rows[-1]["id"]
