"""The clients of others, unchanged, against our server: OpenAI's, Ollama's and Label Studio's."""

import base64
import json
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest

from captioner.annotate.project import Project
from captioner.annotate.project_records import NewCaption, Writer

CONFIG = '<View><Image name="photo" value="$image"/><TextArea name="caption" toName="photo"/></View>'


@pytest.fixture(scope="module")
def chat(running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="anything", max_retries=0)


def url_of(photo: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(photo.read_bytes()).decode()}"


def asking(*images: str, text: str = "What is in this photo?") -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    parts += [{"type": "image_url", "image_url": {"url": image, "detail": "low"}} for image in images]
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]


def test_openai_s_client_gets_the_caption(chat, cap, photos):
    answer = chat.chat.completions.create(model="any", messages=asking(url_of(photos[0])), temperature=0.2, top_p=0.9)
    assert answer.choices[0].message.content == cap(photos[0]).text
    assert answer.model == cap.name and answer.object == "chat.completion"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len(cap(photos[0]).tokens)
    assert [model.id for model in chat.models.list()] == [cap.name]


def test_openai_s_client_gets_several_choices_images_and_a_limit(chat, cap, photos):
    answer = chat.chat.completions.create(model="any", messages=asking(url_of(photos[0])), n=3, max_tokens=4)
    expected = cap(photos[0], num_return_sequences=3, max_new_tokens=4)
    texts = [expected.text, *(other.text for other in expected.alternatives)]
    assert [choice.message.content for choice in answer.choices] == texts
    answer = chat.chat.completions.create(model="any", messages=asking(*map(url_of, photos[:2])))
    assert answer.choices[0].message.content == "\n".join(caption.text for caption in cap(photos[:2]))


def test_openai_s_client_reads_the_last_images_of_a_conversation(chat, cap, photos):
    talk = [*asking(url_of(photos[0])), {"role": "assistant", "content": "a cat"}, *asking(url_of(photos[1]))]
    answer = chat.chat.completions.create(model="any", messages=[*talk, {"role": "user", "content": "Are you sure?"}])
    assert answer.choices[0].message.content == cap(photos[1]).text


def test_openai_s_client_streams(chat, cap, photos):
    options = {"include_usage": True}
    stream = chat.chat.completions.create(
        model="any", messages=asking(url_of(photos[0])), stream=True, stream_options=options
    )
    *chunks, last = stream
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == cap(photos[0]).text and len(pieces) == 2 + len(cap(photos[0]).text.split())
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == [] and last.usage.completion_tokens == len(cap(photos[0]).tokens)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (asking(), "no image"),
        (asking("https://example.org/a.jpg"), "URLs are not fetched"),
        (asking("data:image/png;base64,AAAA"), "not an image"),
        (asking("data:image/png;base64,!"), "not valid base64"),
        ([], "messages"),
    ],
)
def test_openai_s_client_is_told_what_is_wrong(chat, messages, message):
    with pytest.raises(openai.BadRequestError, match=message):
        chat.chat.completions.create(model="any", messages=messages)


def test_openai_s_client_sends_the_token(serving, cap, photos):
    with serving(cap, token="secret") as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="secret", max_retries=0)
        assert client.chat.completions.create(model="any", messages=asking(url_of(photos[0]))).choices
        with pytest.raises(openai.AuthenticationError, match="token"):
            openai.OpenAI(base_url=f"{running.url}/v1", api_key="wrong", max_retries=0).models.list()


@pytest.fixture(scope="module")
def llama(running) -> ollama.Client:
    return ollama.Client(running.url)


def test_ollama_s_client_generates(llama, cap, photos):
    expected = cap(photos[0])
    answer = llama.generate("any", "Describe this.", images=[photos[0]], stream=False, options={"temperature": 0.1})
    assert answer.response == expected.text and answer.done and answer.done_reason == "stop"
    assert answer.eval_count == len(expected.tokens) and answer.model == cap.name
    chunks = list(llama.generate("any", "Describe this.", images=[photos[0].read_bytes()], stream=True))
    assert "".join(chunk.response for chunk in chunks) == expected.text
    assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    short = llama.generate("any", "Describe this.", images=[photos[0]], options={"num_predict": 3})
    assert short.response == cap(photos[0], max_new_tokens=3).text


def test_ollama_s_client_chats(llama, cap, photos):
    messages = [{"role": "user", "content": "Describe this.", "images": [photos[1]]}]
    answer = llama.chat("any", messages)
    assert answer.message.content == cap(photos[1]).text and answer.message.role == "assistant"
    stream = llama.chat("any", messages, stream=True)
    assert "".join(chunk.message.content for chunk in stream) == cap(photos[1]).text


def test_ollama_s_client_asks_for_json_as_photoprism_does_for_labels(llama, cap, photos):
    answer = json.loads(llama.generate("any", "Labels?", images=[photos[0]], format="json").response)
    expected = cap(photos[0])
    assert answer["caption"] == expected.text
    assert [label["name"] for label in answer["labels"]] == [tag.text for tag in expected.tags]


def test_ollama_s_client_lists_loads_and_shows_the_model(llama, cap):
    assert [model.model for model in llama.list().models] == [cap.name]
    assert [model.model for model in llama.ps().models] == [cap.name]
    assert "vision" in llama.show("any").capabilities
    assert llama.generate("any").done_reason == "load"


def test_ollama_s_client_is_told_what_is_wrong(llama):
    with pytest.raises(ollama.ResponseError, match="no image") as caught:
        llama.generate("any", "Tell me a story.")
    assert caught.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match="not an image"):
        llama.generate("any", "Describe this.", images=[b"no photo"])


def test_label_studio_gets_predictions_that_it_accepts(serving, cap, photos):
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    tasks = [{"id": n, "data": {"image": url_of(photo)}} for n, photo in enumerate(photos)]
    folder = photos[0].parent
    names = ["/data/local-files/?d=1.png", "http://ls.example:8080/data/local-files/?d=1.png", "/data/1.png", "1.png"]
    tasks += [{"id": 10 + n, "data": {"image": name}} for n, name in enumerate(names)]
    with serving(cap, files=folder, max_images=4) as running:
        setup = {"project": "1.1700000000", "schema": CONFIG, "hostname": "http://ls.example", "access_token": "x"}
        assert running.client.post("/setup", json=setup).json() == {"model_version": cap.name}
        assert running.client.get("/health").json()["status"] == "UP"
        request = {"tasks": tasks, "project": "1.1700000000", "label_config": CONFIG, "params": {"context": None}}
        results = running.client.post("/predict", json=request).json()["results"]
    expected = [caption.text for caption in cap(photos)]
    texts = [prediction["result"][0]["value"]["text"] for prediction in results]
    assert texts == [[text] for text in [*expected, *[expected[1]] * 4]]
    config = interface.LabelInterface(CONFIG)
    for prediction in results:
        assert config.validate_prediction(prediction), prediction
        assert prediction["model_version"] == cap.name


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("../secret.png", "no such file"),
        ("/data/local-files/?d=../secret.png", "no such file"),
        ("/data/%2e%2e/secret.png", "no such file"),
        ("link.png", "no such file"),
        ("none.png", "no such file"),
        ("a\0b", "no such file"),
        (7, "does not name an image"),
        (None, "does not name an image"),
    ],
)
def test_a_task_names_files_below_the_folder_alone(serving, cap, photos, tmp_path, image, message):
    (tmp_path / "secret.png").write_bytes(photos[0].read_bytes())
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "link.png").symlink_to(tmp_path / "secret.png")
    with serving(cap, files=tmp_path / "media") as running:
        request = {"tasks": [{"data": {"image": image}}], "label_config": CONFIG}
        (prediction,) = running.client.post("/predict", json=request).json()["results"]
    assert prediction["result"] == [] and message in prediction["error"]
    assert str(tmp_path) not in prediction["error"]


def test_without_a_folder_tasks_are_not_fetched(running):
    request = {"tasks": [{"data": {"image": "http://127.0.0.1:1/a.jpg"}}], "label_config": CONFIG}
    (prediction,) = running.client.post("/predict", json=request).json()["results"]
    assert "URLs are not fetched" in prediction["error"]


def test_what_people_write_in_label_studio_becomes_decisions_in_the_project(serving, cap, photos, tmp_path):
    folder = photos[0].parent
    with Project(tmp_path / "album.captions", create=True) as project, project.transaction() as connection:
        for photo in photos[:2]:
            connection.execute(
                "INSERT INTO images (path, member, size, mtime) VALUES (?, '', 1, 1)", (project.relative(str(photo)),)
            )
        project.add_suggestion(1, NewCaption("a cat"), project.writer_id(Writer("model", "m")))

    def event(name: str, text: Any, action: str = "ANNOTATION_CREATED", **more: Any) -> dict[str, Any]:
        region = {"from_name": "caption", "to_name": "photo", "type": "textarea", "value": {"text": text}}
        annotation = {"id": 7, "result": [region], "completed_by": {"id": 3, "email": "ann@example.org"}, **more}
        project = {"id": 1, "label_config": CONFIG}
        return {"action": action, "annotation": annotation, "task": {"data": {"image": name}}, "project": project}

    with serving(cap, files=folder, project=tmp_path / "album.captions") as running:

        def sent(*about: Any, **more: Any) -> tuple[int, str]:
            answer = running.client.post("/webhook", json=event(*about, **more))
            return answer.status_code, answer.json().get("status")

        assert sent("/data/local-files/?d=0.png", ["a cat"]) == (201, "ok")
        assert sent("1.png", ["a dog "], completed_by=5) == (201, "ok")
        assert sent("1.png", ["a hound"], action="ANNOTATION_UPDATED") == (201, "ok")
        assert sent("2.png", ["not in the project"]) == (200, "ignored")
        assert sent("1.png", ["skipped"], was_cancelled=True) == (200, "ignored")
        assert sent("1.png", []) == (200, "ignored")
        assert running.client.post("/webhook", json={"action": "PROJECT_UPDATED"}).json()["status"] == "ignored"
        assert sent("1.png", ["a" * 1_000_000])[0] == 422
    with Project(tmp_path / "album.captions") as project:
        rows = project.rows("SELECT caption, verdict FROM annotations ORDER BY id")
        assert [tuple(row) for row in rows] == [("a cat", "accepted"), ("a hound", "edited")]
        assert [decision.reviewer for decision in project.history(2)] == ["Label Studio user 5", "ann@example.org"]


@pytest.mark.parametrize(
    "config",
    [
        "<View>",
        "<View/>",
        '<View><Text name="t" value="$t"/><TextArea name="c" toName="t"/></View>',
        '<!DOCTYPE x [<!ENTITY a "b">]><View/>',
    ],
)
def test_a_configuration_without_a_caption_is_a_400(running, config):
    answer = running.client.post("/setup", json={"project": "1", "schema": config})
    assert answer.status_code == 400 and "labelling configuration" in answer.json()["message"]
