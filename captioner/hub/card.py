"""Model cards: the README.md in a model's folder, whose metadata the Hugging Face Hub reads."""

from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData

from captioner.errors import CaptionerError


def read_card(folder: Path, name: str) -> ModelCard | None:
    """Read the card in a model's folder; None if there is none.

    Raises:
        CaptionerError: the metadata cannot be read; the message names the model, `name`.
    """
    path = folder / "README.md"
    try:
        return ModelCard.load(path) if path.is_file() else None
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise CaptionerError(
            f"{name}: README.md cannot be read as a model card: {' '.join(str(error).split())}"
        ) from error


def write_card(folder: Path, text: str, source: ModelCard | None, source_name: str) -> None:
    """Write the card of a model that was made from another.

    The source's metadata (licence, languages, data) are kept, except for its scores: they are not the new model's.

    Args:
        text: the new model's description, Markdown.
        source: the source's card, appended to `text`.
        source_name: its name; on the Hub, it becomes the new model's `base_model`.
    """
    data = source.data if source else ModelCardData()
    data["library_name"], data["pipeline_tag"], data["eval_results"] = "captioner", "image-to-text", None
    repository = source_name.partition("@")[0]
    if repository.count("/") == 1 and not Path(source_name).exists():  # on the Hub
        data["base_model"] = repository
    original = f"\nThe card of the model that it was made from:\n\n{source.text.strip()}\n" if source else ""
    (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{text}{original}", encoding="utf-8")


def usage(folder: str | Path) -> str:
    """The card's Python example for the model in `folder`."""
    return f"""```python
from captioner import Captioner

print(Captioner.from_pretrained("{folder}")("photo.jpg").text)
```
"""
