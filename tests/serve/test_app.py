"""`POST /v1/captions` and the paths beside it, over real HTTP on loopback."""

import base64
import json
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioner import Captioner


def encoded(photo: Path) -> str:
    return base64.b64encode(photo.read_bytes()).decode()


def test_a_form_with_one_photo_gives_the_record_that_infer_writes(running, cap, photos):
    answer = running.post(photos[0])
    expected = cap(photos[0])
    assert answer.status_code == 200 and answer.json()["model"] == cap.name
    (result,) = answer.json()["results"]
    assert result["image"] == "0.png" and result["caption"] == expected.text
    assert result["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
    assert (result["width"], result["height"]) == (60, 40)
    assert [tag["tag"] for tag in result["tags"]] == [tag.text for tag in expected.tags]
    assert " ".join(word["word"] for word in result["words"]) == expected.text
    assert all(0 <= word["confidence"] <= 1 for word in result["words"])


def test_an_explanation_has_the_caption_and_a_heat_map_for_each_word(running, cap, photos):
    answer = running.post(photos[1], b"no photo", path="/v1/explain", num_beams=2).json()["results"]
    expected = cap.explain(photos[1], num_beams=2)
    assert answer[0]["caption"] == expected.caption.text and answer[1]["error"] == "not_an_image"
    heat = answer[0]["heat"]
    maps = np.array(heat["maps"]).reshape(-1, heat["rows"], heat["columns"])
    assert len(maps) == len(answer[0]["words"]) > 0
    np.testing.assert_allclose(maps, expected.maps / expected.maps.max((1, 2), keepdims=True), atol=2e-3)
    assert 0 <= heat["window"][0] < heat["window"][2] <= 1
    assert "heat" not in running.post(photos[1]).json()["results"][0]


def test_each_of_several_photos_has_its_own_result_or_error_in_order(running, cap, photos):
    half = photos[1].read_bytes()[:200]
    results = running.post(photos[0], half, photos[2], b"no photo", b"", photos[3]).json()["results"]
    captions = [result.get("caption") for result in results]
    texts = [caption.text for caption in cap([photos[0], photos[2], photos[3]])]
    assert captions == [texts[0], None, texts[1], None, None, texts[2]]
    assert [results[place]["error"] for place in (1, 3, 4)] == ["truncated", "not_an_image", "empty"]
    assert "truncated" in results[1]["message"]


def test_json_takes_base64_data_urls_and_names(running, cap, photos):
    data = encoded(photos[1])
    images = [
        encoded(photos[0]),
        {"name": "cat.png", "data": f"data:image/png;base64,{data}"},
        "\n".join(data[i : i + 76] for i in range(0, len(data), 76)),
    ]
    results = running.client.post("/v1/captions", json={"images": images, "num_beams": 1}).json()["results"]
    assert [result["image"] for result in results] == ["images[0]", "cat.png", "images[2]"]
    texts = [caption.text for caption in cap(photos[:2], num_beams=1)]
    assert [result["caption"] for result in results] == [texts[0], texts[1], texts[1]]


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 1},
        {"num_beams": 4, "num_return_sequences": 3},
        {"max_new_tokens": 5, "min_new_tokens": 4, "no_repeat_ngram_size": 2, "length_penalty": 0.5},
        {"prefix": "a red", "banned_words": ["table", "circle"]},
        {"forced_words": ["green"], "num_beams": 4},
        {"do_sample": True, "temperature": 0.7, "top_k": 9, "top_p": 0.9, "seed": 7},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_of_infer_gives_the_captions_that_infer_gives(running, cap, photos, options):
    expected = cap(photos[:2], **options)
    for answer in (
        running.post(*photos[:2], **options),
        running.client.post("/v1/captions", json={"images": [encoded(photo) for photo in photos[:2]], **options}),
    ):
        results = answer.json()["results"]
        assert [result["caption"] for result in results] == [caption.text for caption in expected]
        others = [[other["caption"] for other in result["alternatives"]] for result in results]
        assert others == [[other.text for other in caption.alternatives] for caption in expected]


def test_an_exported_model_gives_its_own_captions(serving, exported, photos):
    model = Captioner.from_pretrained(exported)
    with serving(model) as running:
        texts = [caption.text for caption in model(photos)]
        assert [result["caption"] for result in running.post(*photos).json()["results"]] == texts
        refused = running.post(photos[0], forced_words="red")
        assert refused.status_code == 422 and "forced words" in refused.json()["results"][0]["message"]
        assert running.post(photos[0]).status_code == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 3}, "beams: Extra inputs"),
        ({"num_beams": 0}, "num_beams: Input should be greater than or equal to 1"),
        ({"num_beams": 1000}, "num_beams: Input should be less than or equal to 16"),
        ({"num_beams": "many secrets"}, "num_beams: Input should be a valid integer"),
        ({"temperature": 2.0}, "temperature must be left out unless do_sample is on"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences must be at most num_beams"),
        ({"forced_words": ["red"], "num_beams": 1}, "num_beams must be at least 2 with forced words"),
        ({"banned_words": [" "]}, "banned_words must be words"),
        ({"length_penalty": "nan"}, "length_penalty: Input should be"),
    ],
    ids=str,
)
def test_wrong_options_are_a_400_that_names_them(running, photos, options, message):
    answers = [running.post(photos[0], **options)]
    if options != {"length_penalty": "nan"}:
        answers.append(running.client.post("/v1/captions", json={"images": [encoded(photos[0])], **options}))
    for answer in answers:
        assert answer.status_code == 400 and message in answer.json()["message"]
        assert "secrets" not in answer.text


@pytest.mark.parametrize(
    ("content", "status", "error"),
    [
        (b"", 400, "invalid_request"),
        (b"{", 400, "invalid_request"),
        (b"[" * 100_000, 400, "invalid_request"),
        (b'{"images": []}', 400, "invalid_request"),
        (b'{"images": [7]}', 400, "invalid_request"),
        (b'{"images": "photo.jpg"}', 400, "invalid_request"),
        (b'{"images": ["\xff"]}', 400, "invalid_request"),
        (b'{"images": ["?"]}', 422, "not_base64"),
        ('{"images": ["é"]}'.encode(), 422, "not_base64"),
        (b'{"images": ["data:image/png,abc"]}', 422, "not_base64"),
        (b'{"images": ["data:"]}', 422, "not_base64"),
        (b'{"images": ["http://127.0.0.1:1/photo.jpg"]}', 422, "url"),
        (b'{"images": ["file:///etc/passwd"]}', 422, "url"),
        (b'{"images": [""]}', 422, "empty"),
    ],
    ids=str,
)
def test_wrong_json_is_a_4xx_that_says_why(running, content, status, error):
    answer = running.client.post("/v1/captions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status
    said = answer.json()["results"][0] if status == 422 else answer.json()
    assert said["error"] == error and said["message"]


def test_a_path_in_json_is_no_file_of_the_server(running, photos):
    answer = running.client.post("/v1/captions", json={"images": [str(photos[0])]})
    assert answer.status_code == 422 and answer.json()["results"][0]["error"] == "not_base64"


@pytest.mark.parametrize(
    ("kind", "content", "status"),
    [
        ("text/plain", b"hello", 415),
        ("", b"hello", 415),
        ("application/x-www-form-urlencoded", b"num_beams=1", 415),
        ("multipart/form-data", b"hello", 400),
        ("multipart/form-data; boundary=x", b"hello", 400),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nhello\r\n--x--\r\n", 400),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--\r\n',
            400,
        ),
    ],
)
def test_wrong_bodies_are_a_4xx(running, kind, content, status):
    answer = running.client.post("/v1/captions", content=content, headers={"content-type": kind})
    assert answer.status_code == status and answer.json()["message"]


def test_a_field_given_twice_is_refused(running, photos):
    files = [("images", ("a.png", photos[0].read_bytes()))]
    answer = running.client.post("/v1/captions", files=files, data={"num_beams": ["1", "2"]})
    assert answer.status_code == 400 and answer.json()["message"] == "num_beams: given twice"


def test_unknown_paths_and_methods_are_json_too(running):
    assert running.client.get("/nowhere").json() == {"error": "not_found", "message": "Not Found"}
    answer = running.client.get("/v1/captions")
    assert answer.status_code == 405 and answer.json()["error"] == "method_not_allowed"


def test_requests_with_different_options_at_one_time_stay_apart(serving, gated, cap, photos):
    kinds: list[dict[str, Any]] = [{"num_beams": 1}, {}, {"num_beams": 4}, {"prefix": "a red"}]
    expected = [[caption.text for caption in cap(photos, **options)] for options in kinds]
    with serving(gated) as running, ThreadPoolExecutor(40) as pool:
        gated.gate.clear()
        asked = [
            (number, kind, pool.submit(running.post, photos[number], **kinds[kind]))
            for _ in range(2)
            for number in range(len(photos))
            for kind in range(len(kinds))
        ]
        time.sleep(0.3)
        gated.gate.set()
        for number, kind, answer in asked:
            assert answer.result().json()["results"][0]["caption"] == expected[kind][number]


def test_a_full_queue_is_a_429_that_says_when_and_recovers(serving, gated, photos):
    from captioner.serve.batching import Limits

    with serving(gated, batching=Limits(places=4, share=1.0)) as running, ThreadPoolExecutor(4) as pool:
        gated.gate.clear()
        waiting = [pool.submit(running.post, photo) for photo in photos[:4]]
        wait_until(lambda: running.service.batcher.taken == 4)
        refused = running.post(photos[4])
        assert refused.status_code == 429 and refused.json()["error"] == "queue_full"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        gated.gate.set()
        assert [answer.result().status_code for answer in waiting] == [200] * 4
        assert running.post(photos[4]).status_code == 200


def test_a_request_that_takes_too_long_gives_up_its_places(serving, gated, photos):
    with serving(gated, request_seconds=1.5) as running:
        gated.gate.clear()
        answer = running.post(*photos)
        assert answer.status_code == 503 and answer.json()["error"] == "too_slow"
        assert running.service.batcher.taken == 0
        gated.gate.set()
        assert running.post(photos[0]).status_code == 200


def test_a_client_that_leaves_gives_up_its_places(serving, gated, photos):
    with serving(gated) as running:
        gated.gate.clear()
        with pytest.raises(Exception, match="timed out"):
            running.client.post("/v1/captions", files={"a": photos[0].read_bytes()}, timeout=0.3)
        wait_until(lambda: running.service.batcher.taken == 0)
        gated.gate.set()
        assert running.post(photos[0]).status_code == 200


def test_the_token_is_asked_for_where_captions_are(serving, cap, photos):
    with serving(cap, token="s3cret é") as running:
        for path in ("/", "/healthz", "/readyz", "/docs", "/openapi.json", "/static/page.js"):
            assert running.client.get(path).status_code == 200, path
        for path in ("/v1/models", "/metrics", "/api/tags", "/nowhere"):
            assert running.client.get(path).status_code == 401, path
        basic = base64.b64encode("anybody:s3cret é".encode()).decode()
        good = [f"Bearer {'s3cret é'}".encode(), f"bearer  {'s3cret é'}".encode(), f"Basic {basic}".encode()]
        bad = [b"Bearer s3cret", b"Bearer", b"s3cret", b"Basic s3cret", b"Basic !", b"Digest x", b"Bearer \xff"]
        for header in good:
            answer = running.client.get("/v1/models", headers={b"authorization": header})
            assert answer.status_code == 200, header
        for header in bad:
            answer = running.client.post(
                "/v1/captions", files={"a": photos[0].read_bytes()}, headers={b"authorization": header}
            )
            assert answer.status_code == 401 and "Bearer" in answer.headers["www-authenticate"], header


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8000", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("localhost@evil.example", 421),
        ("evil.example/localhost", 421),
        ("localhost:port", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
def test_a_server_on_loopback_answers_to_its_own_names_alone(serving, cap, host, status):
    with serving(cap, hosts=("localhost", "127.0.0.1", "::1")) as running:
        assert running.client.get("/healthz", headers={"host": host}).status_code == status


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1"])
def test_pages_of_other_origins_are_refused(running, photos, origin):
    answer = running.client.post("/v1/captions", files={"a": photos[0].read_bytes()}, headers={"origin": origin})
    assert answer.status_code == 403 and answer.json()["error"] == "wrong_origin"
    own = running.client.get("/v1/models", headers={"origin": running.url})
    assert own.status_code == 200


def test_the_model_its_health_and_its_document_are_described(running, cap):
    get = running.client.get
    assert get("/v1/models").json()["data"][0]["id"] == cap.name
    assert get("/healthz").json() == {"status": "ok"}
    ready = {"status": "ready", "workers": {"ready": 1, "configured": 1, "restarts": 0}}
    assert get("/readyz").json() == ready
    document = get("/openapi.json").json()
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= document["components"]["schemas"].keys()
    assert "num_beams" in document["components"]["schemas"]["CaptionForm"]["properties"]


def test_pages_load_nothing_from_elsewhere(running):
    for path in ("/", "/docs"):
        answer = running.client.get(path)
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert not re.search(r"(src|href)=\"(?!/)", answer.text) and "<style" not in answer.text
        for name in re.findall(r"(?:src|href)=\"(/static/[^\"]+)\"", answer.text):
            assert running.client.get(name).status_code == 200


def test_static_files_are_all_that_can_be_read(running):
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd"):
        assert running.client.get(path).status_code == 404


def test_metrics_count_requests_images_and_batches(serving, cap, photos):
    with serving(cap) as running:
        before = numbers(running)
        running.post(photos[0], b"no photo")
        running.client.get("/secret-name")
        after = numbers(running)

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    assert grown('captioner_requests_total{path="/v1/captions",status="200"}') == 1
    assert grown('captioner_requests_total{path="other",status="404"}') == 1
    assert grown('captioner_images_total{outcome="captioned"}') == 1
    assert grown('captioner_images_total{outcome="not_an_image"}') == 1
    assert grown("captioner_batch_size_count") == 1
    assert after["captioner_images_in_progress"] == 0


def numbers(running: Any) -> dict[str, float]:
    lines = running.client.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_a_log_line_says_what_happened_and_nothing_of_what_was_sent(running, photos, caplog):
    caplog.set_level(logging.INFO, "captioner.serve")
    data = {"images": [{"name": "private.jpg", "data": encoded(photos[0])}], "prefix": "hush"}
    answer = running.client.post("/v1/captions?key=hidden", json=data)
    wait_until(lambda: caplog.messages)
    line = json.loads(caplog.messages[-1])
    assert line["id"] == answer.headers["x-request-id"]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/captions", 200)
    assert line["client"] == "127.0.0.1" and line["ms"] > 0
    assert not re.search("private|hush|hidden|iVBOR", caplog.text)


def test_stopping_answers_what_was_accepted(serving, gated, cap, photos):
    with serving(gated) as running, ThreadPoolExecutor(5) as pool:
        gated.gate.clear()
        running.client.get("/healthz")
        waiting = [pool.submit(running.post, photo) for photo in photos]
        wait_until(lambda: running.service.batcher.taken == 5)
        running.server.should_exit = True
        wait_until(lambda: running.service.is_draining)
        gated.gate.set()
        for photo, answer in zip(photos, waiting, strict=True):
            assert answer.result().json()["results"][0]["caption"] == cap(photo).text
            assert answer.result().headers["connection"] == "close"
    assert threading.active_count() < 50


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
