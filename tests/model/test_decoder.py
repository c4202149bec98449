"""Caches, padding and batching change the speed of the decoder, never what it says."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.testing import assert_close


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(3, 20, (rows, length), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("captions_per_image", [1, 3])
def test_cached_steps_and_chunks_equal_one_uncached_pass(make_model: Any, captions_per_image: int) -> None:
    model = make_model()
    encoded, captions = model.encoder(images(2)), tokens(2 * captions_per_image, 9)
    uncached = model(encoder_outputs=encoded, decoder_input_ids=captions).logits
    steps, past = [], None
    for chunk in captions.split([1, 1, 4, 1, 2], dim=1):
        output = model(encoder_outputs=encoded, decoder_input_ids=chunk, cache=past, use_cache=True)
        past = output.cache
        steps.append(output.logits)
    assert_close(torch.cat(steps, dim=1), uncached, rtol=1e-4, atol=1e-4)


def test_a_token_sees_none_after_it(make_model: Any) -> None:
    model = make_model()
    captions = tokens(2, 6)
    changed = captions.clone()
    changed[:, 4:] = 19 - changed[:, 4:]
    before, after = (model(images(2), decoder_input_ids=ids).logits for ids in (captions, changed))
    assert_close(after[:, :4], before[:, :4])
    assert not torch.allclose(after[:, 4:], before[:, 4:], atol=0.1)


def test_beam_search_reorders_the_caches(make_model: Any) -> None:
    model = make_model()
    options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 10, "do_sample": False}
    cached, uncached = (
        model.generate(images(2), **options, use_cache=use_cache, return_dict_in_generate=True, output_scores=True)
        for use_cache in (True, False)
    )
    came_from = cached.beam_indices
    assert ((came_from[:, 1:] != came_from[:, :-1]) & (came_from[:, 1:] >= 0)).any(), "no beam changed place"
    assert cached.sequences.tolist() == uncached.sequences.tolist()
    assert_close(cached.sequences_scores, uncached.sequences_scores, rtol=1e-4, atol=1e-4)


def test_a_generation_projects_cross_attention_keys_and_values_once(make_model: Any) -> None:
    model = make_model()
    calls: Counter[str] = Counter()
    for layer in model.decoder.layers:
        layer.cross_attn.kv_proj.register_forward_hook(lambda *_: calls.update(["cross"]))
        layer.self_attn.qkv_proj.register_forward_hook(lambda *_: calls.update(["self"]))
    model.generate(images(2), num_beams=2, min_new_tokens=6, max_new_tokens=6, do_sample=False)
    assert calls == {"self": 2 * 6, "cross": 2 * 1}


def test_an_image_in_a_batch_is_captioned_as_alone(make_model: Any) -> None:
    model = make_model()
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "num_beams": 2, "do_sample": False}
    together = model.generate(images(3), **options).tolist()
    assert together == [model.generate(image[None], **options)[0].tolist() for image in images(3)]
    assert len(set(map(tuple, together))) > 1, "the images make no difference: the test says nothing"


def test_captions_of_an_image_in_one_pass_equal_each_alone_with_its_image(make_model: Any) -> None:
    model = make_model()
    captions = tokens(6, 5)
    together = model(images(2), decoder_input_ids=captions).logits
    for row in range(6):
        alone = model(images(2)[row // 3, None], decoder_input_ids=captions[row, None]).logits
        assert_close(together[row, None], alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="4 captions do not divide among 3 images"):
        model(images(3), decoder_input_ids=tokens(4, 3))  # 12 tokens: every tensor could be cut in three all the same


def test_captions_that_branch_in_one_row_equal_each_in_a_row_of_its_own(make_model: Any) -> None:
    """Tokens 0 and 1, after them either 2 or 3, and 4 after 3."""
    model = make_model()
    encoded, row = model.encoder(images(2))[0], tokens(2, 5)
    branches = ([0, 1, 2], [0, 1, 3, 4])
    mask = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
    for branch in branches:
        for position, token in enumerate(branch):
            mask[..., token, branch[: position + 1]] = True
    together = model.decoder(row, encoded, mask, position_ids=torch.tensor([0, 1, 2, 2, 3]))
    for branch in branches:
        assert_close(together[:, branch], model.decoder(row[:, branch], encoded), rtol=1e-4, atol=1e-4)


def test_padding_on_the_left_changes_nothing(make_model: Any) -> None:
    model = make_model()
    captions, mask = tokens(2, 7), torch.ones(2, 7, dtype=torch.long)
    captions[1, :3], mask[1, :3] = 0, 0
    encoded = model.encoder(images(2))
    padded = model(encoder_outputs=encoded, decoder_input_ids=captions, decoder_attention_mask=mask).logits
    for row, start in ((0, 0), (1, 3)):
        alone = model(images(2)[row, None], decoder_input_ids=captions[row, None, start:]).logits
        assert_close(padded[row, None, start:], alone, rtol=1e-4, atol=1e-4)
    assert padded.isfinite().all()

    past, steps = None, []
    for end, chunk in ((4, captions[:, :4]), (5, captions[:, 4:5]), (7, captions[:, 5:])):
        output = model(
            encoder_outputs=encoded,
            decoder_input_ids=chunk,
            decoder_attention_mask=mask[:, :end],
            cache=past,
            use_cache=True,
        )
        past = output.cache
        steps.append(output.logits)
    cached = torch.cat(steps, dim=1)
    assert_close(cached[0], padded[0], rtol=1e-4, atol=1e-4)
    assert_close(cached[1, 3:], padded[1, 3:], rtol=1e-4, atol=1e-4)


def test_more_tokens_than_positions_are_refused(make_model: Any) -> None:
    model = make_model()
    with pytest.raises(ValueError, match="17 tokens exceed max_position_embeddings 16"):
        model(images(1), decoder_input_ids=tokens(1, 17))
