"""`sample_weight` in a table reaches the captioning loss, and leaves its scale as it is."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from captioner.config import SourceConfig
from captioner.data.batches import collate
from captioner.data.sources import SourceError, load_samples
from captioner.model.modeling_captioner import IGNORE_INDEX, caption_cross_entropy
from captioner.training.training_data import _with_mean_weight_1


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "x.csv").write_text("image,caption,sample_weight\na.png,a dog,3\nb.png,a cat,\nb.png,one cat,1\n")
    return tmp_path / "x.csv"


def test_a_column_of_a_table_is_the_sample_s_weight(table):
    samples, _ = load_samples(SourceConfig(path=str(table)))
    assert [sample.weight for sample in samples] == [3.0, 1.0]


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "x", "1e9"])
def test_a_weight_that_cannot_be_used_is_refused(table, weight):
    table.write_text(f"image,caption,sample_weight\na.png,a dog,{weight}\n")
    with pytest.raises(SourceError, match=r"x\.csv:2: sample_weight is not a number above 0"):
        load_samples(SourceConfig(path=str(table)))


def test_weights_are_scaled_so_that_the_loss_keeps_its_scale(table):
    samples, _ = load_samples(SourceConfig(path=str(table)))
    scaled = _with_mean_weight_1(samples)
    weights = [sample.weight for sample in scaled for _ in sample.captions]
    assert sum(weights) == pytest.approx(3) and weights[0] == pytest.approx(3 * weights[1])


def item(weight: float) -> dict:
    return {"id": 0, "captions": [[1, 2, 3]], "weight": weight, "error": None, "pixel_values": torch.zeros(3, 2, 2)}


def test_batches_carry_weights_only_where_they_differ():
    assert collate([item(1.0), item(1.0)], 1).weights is None
    batch = collate([item(1.0), item(2.0)], 1)
    assert batch.weights.tolist() == [1, 2] and [part.weights.tolist() for part in batch.split(1)] == [[1], [2]]


def test_the_loss_of_a_caption_is_multiplied_by_its_weight():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 7), torch.tensor([[1, 2, IGNORE_INDEX], [3, 4, 5]])
    first, second = (caption_cross_entropy(logits[i], labels[i], 0.1)[0] for i in (0, 1))
    weights = torch.tensor([0.5, 2.0])[:, None].expand(2, 3)
    total, count = caption_cross_entropy(logits, labels, 0.1, weights)
    assert total.item() == pytest.approx((0.5 * first + 2 * second).item()) and count == 5
