"""What the page is told and what it does: selections, decisions, bulk acts, undo, conflicts, statistics."""

import io
import os
import threading

import pytest
from albums import add_photo
from PIL import Image

from captioner.annotate.project_records import NewCaption, Writer
from captioner.review.queries import seconds_each

HOSTILE = "<script>alert(1)</script> \"'& 🐕"


def names(running, ids):
    return [running.card(image)["name"] for image in ids]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"sort": "-confidence"}, [6, 5, 4, 3, 2, 1]),
        ({"sort": "newest"}, [6, 5, 4, 3, 2, 1]),
        ({"sort": "flags"}, [1, 2, 3, 4, 5, 6]),
        ({"sort": "near"}, [2, 3, 1, 4, 5, 6]),
        ({"flag": "low_confidence"}, [1]),
        ({"flag": "x' OR 1"}, []),
        ({"folder": "photos/b"}, [4, 5, 6]),
        ({"folder": "photos"}, [1, 2, 3, 4, 5, 6]),
        ({"folder": "photo"}, []),
        ({"text": "DOG"}, [1, 3, 6]),
        ({"text": "dog sleep"}, [6]),
        ({"text": "outdoors 5.png"}, [5]),
        ({"text": "%"}, []),
        ({"near": 1}, [2, 3]),
        ({"least": 0.4}, [4, 5, 6]),
        ({"state": "accepted"}, []),
        ({"state": "all"}, [1, 2, 3, 4, 5, 6]),
    ],
    ids=str,
)
def test_filters_sorts_and_search(shared, parameters, expected):
    assert shared.get("/api/list", **parameters) == expected


@pytest.mark.parametrize(
    "parameters", [{"state": "x"}, {"sort": "id; DROP TABLE images"}, {"least": 2}, {"more": 1}], ids=str
)
def test_a_selection_that_means_nothing_is_refused(shared, parameters):
    assert shared.client.get("/api/list", params=parameters).status_code == 422


def test_a_card_has_all_that_the_page_shows(shared):
    card = shared.card(1)
    assert card["words"] == [["a", 0.9], ["dog", 0.1], ["runs", 0.4]] and card["confidence"] == 0.1
    assert card["flags"] == {"low_confidence": "0.10"} and card["tags"] == [{"tag": "outdoors", "score": 0.9}]
    assert card["alternatives"] == [{"caption": "a dog runs again", "confidence": 0.05}]
    assert card["author"] == {"kind": "model", "name": "tiny"} and card["verdict"] is None
    session = shared.get("/api/session")
    assert session["flags"] == [{"name": "low_confidence", "count": 1}]
    assert [(folder["name"], folder["count"]) for folder in session["folders"]] == [
        ("photos", 6), ("photos/a", 3), ("photos/b", 3),
    ]  # fmt: skip


def test_decisions_are_kept_with_who_and_when(running):
    assert running.decide(1, "accepted").json()["cards"][0]["verdict"] == "accepted"
    edited = running.decide(2, "edited", text="a blue bicycle").json()["cards"][0]
    assert (edited["text"], edited["author"], edited["decided_by"]) == (
        "a blue bicycle", {"kind": "person", "name": "ann"}, "ann",
    )  # fmt: skip
    rejected = running.decide(3, "rejected").json()["cards"][0]
    assert rejected["text"] == "two dogs play", "what was rejected stays to be seen"
    assert running.get("/api/list") == [4, 5, 6]
    assert running.get("/api/changes")["progress"]["all"] == {"accepted": 1, "edited": 1, "rejected": 1, "todo": 3}
    (act,) = running.get("/api/photos/2/history")
    assert (act["verdict"], act["reviewer"], act["text"]) == ("edited", "ann", "a blue bicycle") and act["decided"] > 0


def test_the_second_writer_is_told_and_both_texts_are_kept(running):
    first = running.post("/api/decide", id=1, version=1, verdict="edited", text="mine")
    second = running.post("/api/decide", id=1, version=1, verdict="edited", text="yours")
    assert first.status_code == 200 and second.status_code == 409
    assert second.json()["cards"][0]["text"] == "mine" and second.json()["kept"]
    assert running.card(1)["flags"]["conflict"] == "ann wrote at the same time: yours"
    assert [caption.text for caption in running.project.captions(1)] == ["a dog runs", "mine", "yours"]
    assert running.get("/api/list", state="all", flag="conflict") == [1]


def test_undo_and_redo_go_over_photos_to_the_beginning(running):
    running.decide(1, "accepted")
    running.decide(2, "edited", text="x y")
    running.decide(1, "rejected")
    seen = []
    for _ in range(3):
        (card,) = running.post("/api/undo").json()["cards"]
        seen.append((card["id"], card["verdict"]))
    assert seen == [(1, "accepted"), (2, None), (1, None)]
    assert running.post("/api/undo").json()["error"] == "there is nothing to undo"
    for expected in [(1, "accepted"), (2, "edited"), (1, "rejected")]:
        (card,) = running.post("/api/redo").json()["cards"]
        assert (card["id"], card["verdict"]) == expected
    assert running.post("/api/redo").status_code == 422
    running.post("/api/undo")
    running.decide(4, "accepted")
    assert running.post("/api/redo").json()["error"] == "there is nothing to redo", "a new decision ends redoing"


def test_undo_leaves_what_others_did(running):
    running.decide(1, "accepted")
    running.decide(2, "accepted")
    running.project.decide(2, running.card(2)["version"], "rejected", "bob")
    (card,) = running.post("/api/undo").json()["cards"]
    assert card["id"] == 1, "bob's decision lies over ann's second"
    assert running.card(2)["verdict"] == "rejected"


def test_one_photo_can_be_undone_by_itself(running):
    running.decide(1, "accepted")
    running.decide(2, "accepted")
    version = running.card(1)["version"]
    assert running.post("/api/undo", id=1, version=version - 1).status_code == 409
    assert running.post("/api/undo", id=1, version=version).json()["cards"][0]["verdict"] is None
    assert running.card(2)["verdict"] == "accepted"


def test_a_bulk_act_leaves_what_changed_meanwhile_and_is_undone_as_one(running):
    images = running.get("/api/versions", least=0.3)
    running.project.decide(5, 1, "edited", "bob", "a ship")
    answer = running.post("/api/bulk", verdict="accepted", images=images).json()
    assert answer["changed"] == [3, 4, 6] and list(answer["left"]) == ["5"]
    assert running.get("/api/list", state="accepted") == [3, 4, 6] and running.card(5)["text"] == "a ship"
    assert sorted(running.post("/api/undo").json()["changed"]) == [3, 4, 6]
    assert sorted(running.post("/api/redo").json()["changed"]) == [3, 4, 6]


def test_look_alikes_get_one_caption_in_one_act(running):
    images = running.get("/api/versions", near=1, state="all")
    running.post("/api/bulk", verdict="edited", text="a red bicycle", images=images)
    assert [(running.card(image)["text"], running.card(image)["verdict"]) for image in (2, 3)] == [
        ("a red bicycle", "accepted"), ("a red bicycle", "edited"),
    ]  # fmt: skip


def test_find_and_replace_shows_what_it_does_first(running):
    rule = {"find": "DOG", "replace": r"cat\1", "whole_words": True}
    preview = running.post("/api/replace/preview", **rule, selection={"state": "all"}).json()
    assert [(one["id"], one["after"]) for one in preview] == [(1, r"a cat\1 runs"), (6, r"a cat\1 sleeps")]
    assert running.card(1)["text"] == "a dog runs", "a preview changes nothing"
    running.decide(6, "accepted")
    answer = running.post("/api/replace", **rule, images=[(one["id"], one["version"]) for one in preview]).json()
    assert answer["changed"] == [1] and list(answer["left"]) == ["6"]
    assert running.card(1)["text"] == r"a cat\1 runs" and running.card(1)["verdict"] == "edited"


@pytest.mark.parametrize(
    ("rule", "changed"),
    [
        ({"find": "dog", "replace": "x"}, [1, 3, 6]),
        ({"find": "Dog", "replace": "x", "match_case": True}, []),
        ({"find": ".", "replace": "x"}, []),
        ({"find": "do", "replace": "x", "whole_words": True}, []),
        ({"find": "dog", "replace": "dog"}, []),
    ],
    ids=str,
)
def test_find_and_replace_takes_words_as_they_are(shared, rule, changed):
    preview = shared.post("/api/replace/preview", **rule, selection={"state": "all"}).json()
    assert [one["id"] for one in preview] == changed


def test_a_replacement_that_leaves_nothing_is_left_out(running):
    images = [[1, 1], [2, 1]]
    answer = running.post("/api/replace", find="a dog runs", replace="", images=images).json()
    assert answer["changed"] == [] and "empty" in answer["left"]["1"]


def test_hostile_words_and_names_come_back_as_they_are(running, album):
    image = add_photo(album, f"photos/{HOSTILE.replace('/', '_')}.png", HOSTILE)
    card = running.card(image)
    assert card["text"] == HOSTILE and card["name"].endswith(f"{HOSTILE.replace('/', '_')}.png")
    running.decide(image, "edited", text=f"{HOSTILE} again")
    assert running.card(image)["text"] == f"{HOSTILE} again"


def test_a_name_that_is_not_valid_text_is_shown_and_found(running, album):
    image = add_photo(album, os.fsdecode(b"photos/caf\xe9/1.png"), "x")
    assert running.card(image)["name"] == os.fsdecode(b"photos/caf\xe9/1.png")
    (key,) = (folder["key"] for folder in running.get("/api/session")["folders"] if "caf" in folder["name"])
    assert running.get("/api/list", folder=key) == [image]
    assert running.get("/api/list", text="caf") == [image]
    assert running.client.get(f"/thumbnails/{image}").status_code == 200


@pytest.mark.parametrize(
    ("text", "status"),
    [("x" * 10_000, 200), ("x " * 10_001, 422), ("", 422), ("\x00", 422), ("a\nb", 200)],
    ids=["longest", "too long", "empty", "NUL", "line break"],
)
def test_captions_are_bounded(running, text, status):
    assert running.decide(1, "edited", text=text).status_code == status


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"id": 1}', b'{"id": 1e999}',
     b'{"id": 99999999999999999999, "version": 1, "verdict": "accepted"}',
     b'{"id": 1, "version": 1, "verdict": "burnt"}', b'{"id": 1, "version": 1, "verdict": "edited", "text": "\\ud800"}',
     b'{"id": 1, "version": 1, "verdict": "accepted", "reviewer": "bob"}', b"[" * 100_000],
)  # fmt: skip
def test_a_malformed_request_is_refused(shared, body):
    answer = shared.client.post("/api/decide", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422 and "Traceback" not in answer.text


def test_a_photo_that_is_not_there_is_refused(shared):
    assert shared.post("/api/decide", id=999, version=0, verdict="accepted").status_code == 422
    assert shared.get("/api/cards", ids="999,x,-1,99999999999999999999") == []


def test_changes_tell_what_others_and_new_runs_did(running):
    now = running.get("/api/changes")["now"]
    assert running.get("/api/changes", since=now)["images"] == []
    running.project.decide(2, 1, "accepted", "bob")
    running.project.add_suggestion(4, NewCaption("a swing"), running.project.writer_id(Writer("model", "new", "1")))
    assert sorted(running.get("/api/changes", since=now)["images"]) == [2, 4]
    assert running.get("/api/changes", since="x")["images"] is None


def test_thumbnails_are_upright_small_and_made_once(running, album, monkeypatch):
    image = add_photo(album, "photos/large.png", "x")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (900, 600), "red").save(f"{album.folder}/photos/large.png", exif=exif)
    first = running.client.get(f"/thumbnails/{image}")
    assert Image.open(io.BytesIO(first.content)).size == (213, 320) and "immutable" in first.headers["cache-control"]
    monkeypatch.setattr("captioner.review.thumbnails.load_image", None)
    assert running.client.get(f"/thumbnails/{image}").content == first.content
    monkeypatch.undo()
    album.rows("UPDATE images SET mtime = 99 WHERE id = ? RETURNING id", image)
    Image.new("RGB", (900, 600), "blue").save(f"{album.folder}/photos/large.png")
    assert Image.open(io.BytesIO(running.client.get(f"/thumbnails/{image}").content)).size == (320, 213)


def test_a_damaged_cache_of_thumbnails_costs_nothing(album, tmp_path):
    from albums import run_server

    (tmp_path / "album.captions.thumbnails").write_bytes(b"not a database, but some text that is long enough" * 50)
    with run_server(album) as running:
        assert running.client.get("/thumbnails/1").status_code == 200


def test_agreement_where_two_saw_the_same_photo(running, album):
    for image, (ann, bob) in enumerate(
        [("accepted", "accepted"), ("rejected", "rejected"), ("accepted", "rejected")], 1
    ):
        running.decide(image, ann)
        album.decide(image, album.image(image).version, bob, "bob")
    running.decide(4, "accepted")
    running.post("/api/undo")
    answer = running.get("/api/statistics")
    assert answer["verdicts"] == {"ann": {"accepted": 2, "rejected": 1}, "bob": {"accepted": 1, "rejected": 2}}
    (pair,) = answer["pairs"]
    assert (pair["reviewers"], pair["photos"], pair["same_caption"]) == (["ann", "bob"], 3, 1.0)
    assert pair["same_verdict"] == pytest.approx(2 / 3) and pair["kappa"] == pytest.approx(0.4)


def test_what_i_have_not_decided_and_what_is_mine(running, album):
    album.assign("ann", 1, 2)
    running.decide(1, "accepted")
    album.decide(2, 1, "accepted", "bob")
    assert running.get("/api/list", state="accepted", unseen=True) == [2]
    album.assign("bob", 2, 2)
    assert running.get("/api/list", mine=True) == [3, 5]
    progress = running.get("/api/changes")["progress"]
    assert progress["mine"] == {"accepted": 1, "todo": 2} and progress["all"] == {"accepted": 2, "todo": 4}


def test_the_pace_leaves_out_pauses(album):
    for image, decided in enumerate([100, 104, 110, 5000, 5002], 1):
        album.decide(image, 1, "accepted", "ann")
        album.rows("UPDATE decisions SET decided = ? WHERE image = ? RETURNING id", decided, image)
    assert seconds_each(album, "ann") == 4 and seconds_each(album, "bob") is None


def test_two_people_at_once_lose_nothing(running):
    """Both edit all photos again and again: each act is either in force in the history, or was told to be late."""
    answers: list[int] = []

    def work(name: str) -> None:
        for turn in range(5):
            for image in range(1, 7):
                answers.append(running.decide(image, "edited", text=f"{name} {turn}").status_code)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    acts = sum(len(running.get(f"/api/photos/{image}/history")) for image in range(1, 7))
    texts = sum(len(running.project.captions(image)) - 1 for image in range(1, 7))
    assert set(answers) <= {200, 409} and acts == answers.count(200) and texts == len(answers)
