"""A model made from another says so, in a README.md that the Hub reads."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from captioner.errors import CaptionerError
from captioner.hub.card import read_card, write_card

CARD = """---
license: apache-2.0
language: de
tags:
- Bildbeschreibung für alle
model-index:
- name: old
  results:
  - task: {type: image-to-text}
    dataset: {name: COCO, type: coco}
    metrics:
    - {type: CIDEr, value: 1.1}
---

# The old one

Knows a lot.
"""


def test_the_sources_card_stays_below_and_its_scores_are_left_out(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(CARD, encoding="utf-8")
    (tmp_path / "new").mkdir()
    write_card(tmp_path / "new", "# The new one\n", read_card(tmp_path, "old"), "someone/old")
    card = ModelCard.load(tmp_path / "new" / "README.md")
    metadata = card.data.to_dict()
    assert metadata["license"] == "apache-2.0" and metadata["tags"] == ["Bildbeschreibung für alle"]
    assert metadata["library_name"] == "captioner" and metadata["base_model"] == "someone/old"
    assert "model-index" not in metadata
    assert card.text.index("# The new one") < card.text.index("# The old one")


def test_a_model_without_a_card_gets_one_and_a_folder_is_no_model_of_the_hub(tmp_path: Path):
    write_card(tmp_path, "# The new one\n", read_card(tmp_path, "old"), str(tmp_path))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == {"library_name": "captioner", "pipeline_tag": "image-to-text"}
    assert card.text.strip() == "# The new one"


@pytest.mark.parametrize("content", [b"---\na: [\n---\n", b"---\n- a\n---\n", b"\xff\xfe"])
def test_a_card_that_cannot_be_read_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "README.md").write_bytes(content)
    with pytest.raises(CaptionerError, match=r"^old: README\.md cannot be read as a model card: [^\n]+$"):
        read_card(tmp_path, "old")
