"""The card of a model's folder: README.md, whose metadata the Hugging Face Hub reads."""

from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData

from captioner.errors import CaptionerError


def read_card(folder: Path, name: str) -> ModelCard | None:
    """The card of the model `name`, None where its folder has none.

    Raises:
        CaptionerError: its metadata cannot be read.
    """
    path = folder / "README.md"
    try:
        return ModelCard.load(path) if path.is_file() else None
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise CaptionerError(f"{name}: README.md cannot be read as a card: {' '.join(str(error).split())}") from error


def write_card(folder: Path, text: str, source: ModelCard | None, source_name: str) -> None:
    """Say in `folder` what a model made from another is, whose own card, `source`, stands below `text`.

    Its metadata are kept (licence, languages, data), but for its scores: they are not the new model's.
    """
    data = source.data if source else ModelCardData()
    data["library_name"], data["pipeline_tag"], data["eval_results"] = "captioner", "image-to-text", None
    if source_name.count("/") == 1 and not Path(source_name).exists():  # of the Hub
        data["base_model"] = source_name
    original = f"\nThe card of the model it was made from:\n\n{source.text.strip()}\n" if source else ""
    (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{text}{original}", encoding="utf-8")


def usage(folder: str | Path) -> str:
    """How a card says to caption with the model in `folder`."""
    return f"""```python
from captioner import Captioner

print(Captioner.from_pretrained("{folder}")("photo.jpg").text)
```
"""
