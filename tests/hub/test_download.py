"""The real client of the Hub, before a server that answers as the Hub does: the right model or one clear line."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import Hub, serving
from public_checkpoints import save_checkpoint

from captioner import Captioner
from captioner.errors import CaptionerError
from captioner.hub.find import find_model

MODEL = "someone/birds"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving(Hub()) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hub"


def put(hub: Hub, folder: Path, repository: str = MODEL, revision: str = "main") -> str:
    return hub.commit(repository, {path.name: path.read_bytes() for path in folder.iterdir()}, revision)


def refusal(model: str = MODEL, **options: object) -> str:
    with pytest.raises(CaptionerError) as caught:
        find_model(model, **options)
    name, _, message = str(caught.value).partition(": ")
    assert name == model.partition("@")[0] and "\n" not in message
    return message


def whole_files(cache: Path) -> list[str]:
    """What the cache shows of models."""
    return sorted(path.name for path in cache.glob("models--*/snapshots/*/*"))


def test_a_model_is_pushed_and_loaded_by_branch_revision_and_offline(
    hub: Hub, tiny_captioner: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = Captioner.from_pretrained(tiny_captioner, device="cpu")
    url = local.push_to_hub(MODEL, token="mine")
    assert url.startswith(f"{hub.address}/{MODEL}/commit/")
    sha = url.rpartition("/")[2]
    hub.refs[MODEL]["v1"] = sha
    hub.commit(MODEL, {"config.json": b"{}"})
    expected = local(photos[0]).text
    for model, revision in ((f"{MODEL}@v1", None), (MODEL, "v1"), (f"{MODEL}@{sha}", None)):
        found = Captioner.from_pretrained(model, revision=revision, cache_dir=tmp_path / "cache", device="cpu")
        assert found(photos[0]).text == expected
    assert found.name == f"{MODEL}@{sha}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert Captioner.from_pretrained(f"{MODEL}@v1", cache_dir=tmp_path / "cache")(photos[0]).text == expected
    assert "the Hub is offline or out of reach" in refusal(f"{MODEL}@v1")


def test_a_private_model_needs_its_token(hub: Hub, tiny_captioner: Path) -> None:
    put(hub, tiny_captioner)
    hub.private[MODEL] = "right"
    missing = "no such folder, and the Hub has no such model that you may read; a private one needs a token"
    assert refusal(token=False) == refusal(token="wrong") == missing
    assert find_model(MODEL, token="right")[0].is_dir()


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (
            401,
            {"X-Error-Message": "Invalid credentials in Authorization header"},
            "does not know the access token (401)",
        ),
        (403, {"X-Error-Message": "Forbidden"}, "the access token may not read it (403)"),
        (429, {"Retry-After": "30"}, "asked too often from here (429); try again in 30 seconds"),
        (429, {}, "asked too often from here (429); try again later"),
        (500, {}, "the Hub has a fault (500); try again later"),
        (503, {"Retry-After": "1"}, "the Hub has a fault (503); try again later"),
    ],
)
@pytest.mark.parametrize("part", ["/api/", "/resolve/"])
def test_refusals_are_told_apart(
    hub: Hub, tiny_captioner: Path, cache: Path, status: int, headers: dict[str, str], message: str, part: str
) -> None:
    put(hub, tiny_captioner)
    hub.fault = lambda method, path: (status, headers) if part in path else None
    assert message in refusal()
    assert whole_files(cache) == []


def test_a_model_that_is_missing_gated_or_of_another_revision(hub: Hub, tiny_captioner: Path) -> None:
    put(hub, tiny_captioner)
    assert refusal("someone/else").startswith("no such folder, and the Hub has no such model")
    assert refusal(f"{MODEL}@v9").startswith("the Hub has no revision 'v9'")
    hub.gated.add(MODEL)
    assert refusal().startswith("gated on the Hub; accept its terms")


def test_a_connection_that_is_cut_half_way_goes_on_or_leaves_nothing_half(
    hub: Hub, tiny_captioner: Path, cache: Path
) -> None:
    put(hub, tiny_captioner)
    weights = (tiny_captioner / "model.safetensors").read_bytes()
    hub.spoil = lambda path, content: content[:100] if path == "model.safetensors" else content
    assert refusal().startswith("its download broke off")
    assert "model.safetensors" not in whole_files(cache)
    cuts = iter([100])
    hub.spoil = lambda path, content: content[: next(cuts, None)] if path == "model.safetensors" else content
    assert (find_model(MODEL)[0] / "model.safetensors").read_bytes() == weights
    hub.fault = lambda method, path: (503, {})
    assert find_model(MODEL)[0].is_dir(), "what is in the cache needs no Hub"


def test_a_download_that_stalls_ends(
    hub: Hub, tiny_captioner: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(hub, tiny_captioner)
    released = threading.Event()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)

    def stall(path: str, content: bytes) -> bytes:
        if path == "model.safetensors":
            released.wait(5)
        return content

    hub.spoil = stall
    assert refusal().startswith("its download broke off")
    released.set()
    assert "model.safetensors" not in whole_files(cache)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_is_not_what_was_announced_is_removed(hub: Hub, tiny_captioner: Path, cache: Path, name: str) -> None:
    put(hub, tiny_captioner)
    hub.spoil = lambda path, content: bytes(len(content)) if path == name else content
    assert f"what arrived as {name} is not what the Hub announced" in refusal()
    assert name not in whole_files(cache)
    hub.spoil = lambda path, content: content
    assert (find_model(MODEL)[0] / name).read_bytes() == (tiny_captioner / name).read_bytes()


def test_pickles_are_downloaded_only_where_there_is_nothing_else(hub: Hub, tiny_captioner: Path) -> None:
    put(hub, tiny_captioner)
    hub.commit(MODEL, {"pytorch_model.bin": b"a", "code.py": b"b", "best/model.safetensors": b"c"})
    assert not {"pytorch_model.bin", "code.py", "best"} & {path.name for path in find_model(MODEL)[0].iterdir()}
    hub.commit("someone/old", {"config.json": b"{}", "pytorch_model.bin": b"a", "optimizer.bin": b"b"})
    assert sorted(path.name for path in find_model("someone/old")[0].iterdir()) == ["config.json", "pytorch_model.bin"]


def test_a_server_that_is_no_hub(hub: Hub) -> None:
    hub.fault = lambda method, path: (200, {})
    assert "failed" in refusal() or "not one of the Hub" in refusal()


def test_a_hub_out_of_reach(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the Hub cannot be reached" in refusal()


def test_another_librarys_model_is_converted_once_and_found_offline(
    hub: Hub,
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """First by the command line, which finds the server by HF_ENDPOINT."""
    save_checkpoint("git", tmp_path / "git")
    (tmp_path / "git" / "pytorch_model.bin").write_bytes(b"never asked for")
    sha = put(hub, tmp_path / "git", "someone/git")
    command = [sys.executable, "-m", "captioner", "annotate", str(photos[0]), "--model", "someone/git"]
    variables = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    place = tmp_path / "home" / "captioner" / "1" / "models--someone--git" / sha
    assert done.stderr == f"someone/git: a 'git' model; converting it, once, to {place}\n"
    assert not any(path.endswith(".bin") for _, path in hub.requests)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    capsys.readouterr()
    found = Captioner.from_pretrained("someone/git", device="cpu")
    assert (found.folder, found.name) == (place, "someone/git")
    assert f"{photos[0]}\t{found(photos[0]).text}\n" == done.stdout
    assert "converting" not in capsys.readouterr().err


def test_a_folder_is_converted_anew_when_its_files_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    save_checkpoint("vit, gpt2", tmp_path / "model")
    for said in (1, 1, 2):
        if said == 2:
            shutil.copy(tmp_path / "model" / "config.json", tmp_path / "copy")
            (tmp_path / "model" / "config.json").write_bytes((tmp_path / "copy").read_bytes() + b"\n")
        Captioner.from_pretrained(tmp_path / "model", device="cpu")
        assert len(list((tmp_path / "captioner" / "1" / "folders").glob("model-*[!k]"))) == said
    assert capsys.readouterr().err.count("converting it, once, to") == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"config.json": b'{"model_type": "clip", "architectures": ["CLIPModel"]}'},
            "a 'clip' model, which transformers reads as CLIPModel",
        ),
        ({"model_index.json": b"{}"}, "a pipeline of diffusers"),
        ({"adapter_config.json": b"{}"}, "an adapter of PEFT; merge it"),
        ({"config.json": b'{"architecture": "resnet50"}'}, "a 'resnet50' of timm"),
        ({"config.json": b'{"model_type": "x", "auto_map": {"AutoModel": "a.B"}}'}, "a 'x' model with code of its own"),
        ({"model.gguf": b""}, "there is no config.json in it, only model.gguf"),
        ({"config.json": b"[]"}, "its config.json holds no JSON object"),
    ],
)
def test_anything_else_says_what_it_is(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CaptionerError) as caught:
        Captioner.from_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ") and message in str(caught.value)
    assert "captioner reads its own models, and converts vision-encoder-decoder, blip, git" in str(caught.value)
