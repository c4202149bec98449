from collections.abc import Callable

import pytest
import torch

from captioner.config import RunConfig
from captioner.model.modeling_captioner import IGNORE_INDEX, CaptionerForConditionalGeneration
from captioner.training.caption_packing import pack_captions
from captioner.training.task import packed_logits
from captioner.training.trainer import Trainer

LENGTHS = {"captioning": [[3, 1, 5], [0, 0, 0], [2, 4, 0]], "reward": [[7, 2], [1, 6], [0, 0]]}


@pytest.fixture
def model(recipe: Callable[..., RunConfig]) -> CaptionerForConditionalGeneration:
    return Trainer(recipe(), resume=False).model.eval()


def test_captions_packed_in_a_row_are_read_as_each_by_itself(model: CaptionerForConditionalGeneration) -> None:
    """Those of all objectives, with images that have fewer captions, or none."""
    torch.manual_seed(0)
    labels = {}
    for name, lengths in LENGTHS.items():
        lengths = torch.tensor(lengths)
        drawn = torch.randint(model.config.vocab_size, (*lengths.shape, int(lengths.max())))
        labels[name] = drawn.masked_fill(torch.arange(drawn.shape[2]) >= lengths[:, :, None], IGNORE_INDEX)
    images = torch.rand(3, 3, 32, 32)
    packed = pack_captions(labels, model.prepare_decoder_input_ids_from_labels)
    assert packed.input_ids.shape == (3, 3 + 1 + 5 + 7 + 2), "the longest row, and no padding between its captions"
    found = packed_logits(model.decoder, model.lm_head, packed, model.encoder(images).last_hidden_state)
    for name, captions in labels.items():
        alone = model(pixel_values=images, labels=captions.flatten(0, 1)).logits.view(*captions.shape, -1)
        torch.testing.assert_close(found[name], alone[captions != IGNORE_INDEX], atol=1e-5, rtol=1e-4)


def test_images_without_any_caption_give_no_logits(model: CaptionerForConditionalGeneration) -> None:
    labels = torch.full((2, 3, 1), IGNORE_INDEX)
    packed = pack_captions({"captioning": labels}, model.prepare_decoder_input_ids_from_labels)
    logits = packed_logits(
        model.decoder, model.lm_head, packed, model.encoder(torch.rand(2, 3, 32, 32)).last_hidden_state
    )
    assert logits["captioning"].shape == (0, model.config.vocab_size)
