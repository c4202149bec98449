"""A model of the Hub is downloaded as asked; every refusal of the Hub costs one line that says what to do."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors

from captioner.errors import CaptionerError
from captioner.hub.find import digest, find_model


def test_revision_token_and_cache_reach_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_model("someone/model", "v2", "secret", tmp_path / "cache") == (tmp_path, "someone/model")
    patterns = asked.pop("allow_patterns")
    assert asked == {
        "repository": "someone/model",
        "revision": "v2",
        "token": "secret",
        "cache_dir": tmp_path / "cache",
        "local_files_only": False,
        "ignore_patterns": ["*/*"],
    }
    assert not {"*", "*.py", "*.bin", "*.pt"} & set(patterns), "no code, and no pickles where there is anything else"
    assert find_model("someone/model@v3")[1] == "someone/model@v3" and asked["revision"] == "v3"
    with pytest.raises(CaptionerError, match=r"someone/model@v3: named with another revision, v2"):
        find_model("someone/model@v3", "v2")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError, "someone/model: gated on the Hub; accept its terms there and log in or pass a token"),
        (
            errors.RepositoryNotFoundError,
            "someone/model: no such folder, and the Hub has no such model that you may read; "
            "a private one needs a token",
        ),
        (errors.RevisionNotFoundError, "someone/model: the Hub has no revision 'v2' of it"),
        (errors.HfHubHTTPError, "someone/model: the Hub has a fault (503); try again later"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    error: type[errors.HfHubHTTPError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise error("503 of a kind\nand more", response=SimpleNamespace(headers={}, request=None, status_code=503))

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CaptionerError) as caught:
        find_model("someone/model", revision="v2")
    assert str(caught.value) == message


def test_the_digest_is_the_models_wherever_it_lies_and_whatever_its_card_says(tmp_path: Path) -> None:
    for name, files in {
        "a": {"config.json": "{}", "README.md": "one"},
        "b": {"config.json": "{}", "README.md": "another"},
        "c": {"config.json": "[]", "README.md": "one"},
        "d": {"other.json": "{}", "README.md": "one"},
    }.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    a, b, c, d = (digest(tmp_path / name) for name in "abcd")
    assert a == b and len({a, c, d}) == 3
