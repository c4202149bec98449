"""Who gets in: tokens, cookies, passwords; hosts, origins and paths that are not welcome."""

import os
from pathlib import Path

import httpx
import pytest
from albums import PASSWORD, add_photo, run_server
from PIL import Image

from captioner.errors import CaptionerError
from captioner.review.access import Access, read_password

ASKED = ("/api/session", "/api/list", "/api/cards?ids=1", "/thumbnails/1", "/photos/1", "/api/photos/1/history")


@pytest.mark.parametrize("path", ASKED)
def test_a_stranger_gets_nothing_but_a_closed_door(shared, path):
    with shared.stranger() as stranger:
        assert stranger.get(path).status_code == 401
        door = stranger.get("/?token=wrong")
    assert door.status_code == 401 and "needs its key" in door.text and "set-cookie" not in door.headers


def test_a_stranger_changes_nothing(shared):
    body = {"id": 1, "version": 1, "verdict": "accepted"}
    with shared.stranger() as stranger:
        assert stranger.post("/api/decide", json=body).status_code == 401
    assert shared.card(1)["verdict"] is None


def test_the_cookie_is_of_no_use_to_scripts_and_other_sites(shared):
    with shared.stranger() as stranger:
        cookie = stranger.get(shared.key).headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie


@pytest.mark.parametrize(
    "change", [lambda value: value[:-1] + ("0" if value[-1] != "0" else "1"), lambda value: "Ym9i" + value]
)
def test_a_cookie_that_was_tampered_with_is_none(shared, change):
    name = shared.access.cookie_name
    with shared.stranger() as stranger:
        answer = stranger.get("/api/session", headers={"cookie": f"{name}={change(shared.client.cookies[name])}"})
    assert answer.status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "[::1", ""])
def test_a_host_name_that_an_attacker_points_here_is_refused(shared, host):
    headers = {"host": host.format(port=shared.access.port)}
    assert shared.client.get("/api/list", headers=headers).status_code in (400, 421)
    assert shared.client.get("/", headers=headers).status_code in (400, 421)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
    ids=str,
)
def test_other_origins_neither_read_nor_write(shared, headers):
    body = {"id": 1, "version": 1, "verdict": "accepted"}
    assert shared.client.post("/api/decide", json=body, headers=headers).status_code == 403
    assert shared.client.get("/api/list", headers=headers).status_code == 403
    assert shared.client.get("/thumbnails/1", headers=headers).status_code == 403
    assert shared.card(1)["verdict"] is None


def test_a_form_of_another_site_is_no_request(shared):
    answer = shared.client.post("/api/decide", content='{"id": 1}', headers={"content-type": "text/plain"})
    assert answer.status_code == 415


def test_a_link_on_another_site_may_lead_to_the_page(shared):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert shared.client.get("/", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/", "/static/main.js", "/api/list", "/thumbnails/1", "/nothing"])
def test_every_answer_has_the_strict_headers(shared, path):
    headers = shared.client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/thumbnails/../../album.captions",
        "/photos/%2e%2e%2falbum.captions",
        "/photos/-1",
        "/photos/99999999999999999999",
        "/photos/999",
    ],
)
def test_no_path_leads_out_of_what_is_served(shared, path):
    raw = httpx.URL(shared.url).copy_with(raw_path=path.encode())
    assert shared.client.get(raw).status_code == 404


def test_a_link_out_of_the_project_is_not_followed(shared, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    Image.new("RGB", (50, 50)).save(outside / "secret.png")
    photos = Path(shared.project.folder, "photos")
    os.symlink(outside / "secret.png", photos / "link.png")
    os.symlink(outside, photos / "folder")
    os.symlink(photos / "a" / "1.png", photos / "inside.png")
    ids = {
        name: add_photo(shared.project, f"photos/{name}", "x")
        for name in ("link.png", "folder/secret.png", "inside.png")
    }
    status = {name: shared.client.get(f"/photos/{image}").status_code for name, image in ids.items()}
    assert status == {"link.png": 404, "folder/secret.png": 404, "inside.png": 200}
    answer = shared.client.get(f"/thumbnails/{ids['link.png']}")
    assert "leads out of" in answer.json()["error"]


def test_a_photo_that_became_a_link_is_not_followed(shared, tmp_path_factory):
    secret = tmp_path_factory.mktemp("outside") / "secret.png"
    Image.new("RGB", (50, 50)).save(secret)
    photo = Path(shared.project.folder, "photos/swapped.png")
    image = add_photo(shared.project, "photos/swapped.png", "x")
    assert shared.client.get(f"/photos/{image}").status_code == 200
    photo.unlink()
    photo.symlink_to(secret)
    assert shared.client.get(f"/photos/{image}").status_code == 404


def test_photos_beside_the_project_s_folder_are_shown(shared):
    image = add_photo(shared.project, f"../{Path(shared.project.folder).name}.png", "x")
    assert shared.client.get(f"/photos/{image}").status_code == 200


def test_a_file_that_is_no_image_is_never_sent(shared):
    Path(shared.project.folder, "photos/passwords.png").write_text("root:x:0:0")
    image = add_photo(shared.project, "photos/passwords.png", "x")
    answer = shared.client.get(f"/photos/{image}")
    assert answer.status_code == 404 and "root" not in answer.text


def test_a_request_is_bounded(shared, monkeypatch):
    monkeypatch.setattr("captioner.review.answers.MAX_BODY", 1000)
    assert shared.post("/api/decide", id=1, version=1, verdict="edited", text="x" * 2000).status_code == 422


def test_others_log_in_by_password_under_their_own_names(album, monkeypatch):
    monkeypatch.setattr("captioner.review.access.WRONG_PASSWORD_SECONDS", 0.01)
    with run_server(album, password=PASSWORD) as running, running.stranger() as other:
        assert "Password" in other.get("/").text
        wrong = other.post("/login", data={"name": "bob", "password": "wrong"})
        assert wrong.status_code == 401 and not other.cookies
        assert other.post("/login", data={"name": " bob  b ", "password": PASSWORD}).status_code == 303
        assert other.get("/api/session").json()["reviewer"] == "bob b"
        assert running.get("/api/session")["reviewer"] == "ann"


def test_a_server_without_a_password_lets_nobody_log_in(shared, monkeypatch):
    monkeypatch.setattr("captioner.review.access.WRONG_PASSWORD_SECONDS", 0.01)
    with shared.stranger() as other:
        for password in ("", "None"):
            assert other.post("/login", data={"name": "x", "password": password}).status_code == 401


@pytest.mark.parametrize(
    ("listens_on", "host", "answers"),
    [
        ("127.0.0.1", "localhost:1", True),
        ("127.0.0.1", "192.168.0.7:1", False),
        ("0.0.0.0", "192.168.0.7:1", True),
        ("0.0.0.0", "[fe80::1]:1", True),
        ("0.0.0.0", "evil.example:1", False),
        ("review.example", "review.example:1", True),
    ],
)
def test_a_server_answers_to_addresses_and_its_own_name(listens_on, host, answers):
    assert Access("ann", 1, listens_on).answers_to(host) is answers


@pytest.mark.parametrize(
    ("content", "message"), [(b"short\n", "5 characters"), (b"", "0 characters"), (b"\xff" * 20, "not text")]
)
def test_a_password_that_is_too_weak_is_refused(tmp_path, content, message):
    (tmp_path / "password").write_bytes(content)
    with pytest.raises(CaptionerError, match=message):
        read_password(tmp_path / "password")
    with pytest.raises(CaptionerError, match="cannot be read"):
        read_password(tmp_path / "none")
