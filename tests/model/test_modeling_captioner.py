"""The whole model: labels line up with logits, the loss is a true mean, files hold all there is."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.testing import assert_close

from captioner import (
    CaptionerConfig,
    CaptionerForConditionalGeneration,
)
from captioner.model.modeling_captioner import IGNORE_INDEX, caption_cross_entropy, shift_tokens_right

START, END = 1, 2
# Every caption token is its own, so that a prediction one place off is a wrong one.
LABELS = torch.tensor([[5, 9, 4, 7, 12, END], [8, 3, 11, END, IGNORE_INDEX, IGNORE_INDEX]])


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_inputs_are_labels_shifted_once_with_padding_for_ignored_ones() -> None:
    inputs = shift_tokens_right(LABELS, decoder_start_token_id=START, pad_token_id=0)
    assert inputs.tolist() == [[START, 5, 9, 4, 7, 12], [START, 8, 3, 11, END, 0]]
    assert LABELS[1, -1] == IGNORE_INDEX  # the labels themselves are left alone


def test_logits_at_a_place_are_scored_against_the_label_at_that_place(make_model: Any, images: torch.Tensor) -> None:
    model = make_model()
    output = model(images, labels=LABELS)
    terms = []
    for image, labels in zip(images, LABELS.tolist(), strict=True):
        words = [label for label in labels if label != IGNORE_INDEX]
        for place, word in enumerate(words):
            before = torch.tensor([[START, *words[:place]]])
            terms.append(-model(image[None], decoder_input_ids=before).logits[0, -1].log_softmax(-1)[word])
    assert_close(output.loss, torch.stack(terms).mean(), rtol=1e-4, atol=1e-4)


def test_a_model_trained_on_labels_generates_them(make_model: Any, images: torch.Tensor) -> None:
    """A model that was fed labels shifted twice, or not at all, learns as low a loss and fails here."""
    model = make_model(initializer_range=0.05).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(images, labels=LABELS).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    generated = model.eval().generate(images, max_new_tokens=6, do_sample=False)
    assert generated.tolist() == [[START, 5, 9, 4, 7, 12, END], [START, 8, 3, 11, END, 0, 0]]


def test_ignored_labels_on_the_right_change_nothing(make_model: Any, images: torch.Tensor) -> None:
    model = make_model()
    padded = torch.nn.functional.pad(LABELS, (0, 3), value=IGNORE_INDEX)
    short, long = (model(images, labels=labels) for labels in (LABELS, padded))
    assert_close(long.loss, short.loss)
    assert_close(long.logits[:, :6], short.logits)


def test_losses_of_parts_with_the_count_of_the_whole_add_up(make_model: Any, images: torch.Tensor) -> None:
    model = make_model()
    whole = model(images, labels=LABELS).loss
    count = int((LABELS != IGNORE_INDEX).sum())
    parts = [model(images[i, None], labels=LABELS[i, None], num_items_in_batch=count).loss for i in range(2)]
    assert_close(sum(parts), whole)


def test_label_smoothing_spreads_its_mass_over_the_vocabulary() -> None:
    logits = torch.zeros(1, 3, 4)
    logits[0, :, 1] = math.log(7.0)  # p = 0.7 for token 1, 0.1 for each of three others
    total, count = caption_cross_entropy(logits, torch.tensor([[1, 0, IGNORE_INDEX]]), label_smoothing=0.4)
    hit, miss = -math.log(0.7), -math.log(0.1)
    expected = (0.7 * hit + 0.3 * miss) + (0.1 * hit + 0.9 * miss)  # 0.6 on the label and 0.1 on each of the four
    assert count == 2
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_trunk_features_stand_in_for_pixels(make_model: Any, images: torch.Tensor) -> None:
    model = make_model(encoder_layers=1)
    features, _ = model.encoder.trunk(images)
    from_pixels, from_features = model(images, labels=LABELS), model(trunk_features=features, labels=LABELS)
    assert_close(from_features.logits, from_pixels.logits)
    with pytest.raises(ValueError, match="either pixel_values or trunk_features"):
        model(images, trunk_features=features, labels=LABELS)


def test_sampling_follows_the_seed(make_model: Any, images: torch.Tensor) -> None:
    model = make_model(initializer_range=0.1)

    def draw(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return model.generate(images, do_sample=True, num_return_sequences=3, max_new_tokens=8).tolist()

    assert draw(0) == draw(0) != draw(1)
    assert len(draw(0)) == 6 and all(caption[0] == START for caption in draw(0))


def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients(make_model: Any, images: torch.Tensor) -> None:
    model = make_model(dropout=0.3, encoder_layers=1).train()
    calls: Counter[str] = Counter()
    for name, layer in (
        ("trunk", model.encoder.trunk.model.blocks[0].attn),
        ("bridge", model.encoder.bridge.layers[0].self_attn),
        ("decoder", model.decoder.layers[0].cross_attn),
    ):
        layer.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(3)
        model(images, labels=LABELS).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients()
    model.gradient_checkpointing_enable()
    checkpointed = gradients()
    assert calls == {"trunk": 3, "bridge": 3, "decoder": 3}  # once, then forward and recomputation
    assert_close(checkpointed, plain)
    model.gradient_checkpointing_disable()
    gradients()
    assert calls == {"trunk": 4, "bridge": 4, "decoder": 4}


def test_a_saved_model_is_one_safetensors_file_with_tied_embeddings(
    make_model: Any, images: torch.Tensor, tmp_path: Path
) -> None:
    model = make_model(encoder_layers=1, encoder_pooling=2)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".py") == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert len({"lm_head.weight", "decoder.embed_tokens.weight"} & set(file.keys())) == 1
    loaded = CaptionerForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.decoder.embed_tokens.weight
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(loaded(images, labels=LABELS).logits, model(images, labels=LABELS).logits)
    half = CaptionerForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_a_configuration_that_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size 30 is not a multiple of num_attention_heads 4"):
        CaptionerConfig(hidden_size=30, num_attention_heads=4)
    with pytest.raises(ValueError, match="hidden_size 30 must be a multiple of 4"):
        CaptionerConfig(hidden_size=30, num_attention_heads=2, encoder_layers=1)


def test_forward_raises_on_arguments_that_it_does_not_know(make_model: Any, images: torch.Tensor) -> None:
    """One that vanished in `**kwargs`, a cache under a new name, made `generate` write garbage."""
    with pytest.raises(TypeError, match="past_key_values"):
        make_model()(images, labels=LABELS, past_key_values=None)


def test_a_tuple_holds_the_same_as_the_named_output(make_model: Any, images: torch.Tensor) -> None:
    model = make_model().eval()
    named, plain = (model(images, labels=LABELS, return_dict=return_dict) for return_dict in (True, False))
    assert_close(plain, (named.loss, named.logits, named.encoder_last_hidden_state))
    model.config.return_dict = False
    assert_close(model(images, labels=LABELS), plain)


def test_captions_go_on_from_texts_as_the_processor_gives_them(make_model: Any, images: torch.Tensor) -> None:
    model = make_model(initializer_range=0.2).eval()
    texts = torch.tensor([[5, END, 0, 0], [5, 9, 4, END]])
    both = model.generate(pixel_values=images, input_ids=texts, attention_mask=(texts != 0).long(), max_new_tokens=4)
    for image, text, found in zip(images, ([5], [5, 9, 4]), both.tolist(), strict=True):
        start = torch.tensor([[START, *text]])
        (alone,) = model.generate(pixel_values=image[None], decoder_input_ids=start, max_new_tokens=4).tolist()
        assert [token for token in found if token] == [token for token in alone if token]


def test_only_the_logits_that_are_asked_for_are_computed(make_model: Any, images: torch.Tensor) -> None:
    model, inputs = make_model(), torch.tensor([[START, 5, 9], [START, 8, 3]])
    whole = model(images, decoder_input_ids=inputs).logits
    for asked, expected in (
        (0, whole),
        (1, whole[:, -1:]),
        (2, whole[:, -2:]),
        (torch.tensor([0, 2]), whole[:, [0, 2]]),
    ):
        found = model(images, decoder_input_ids=inputs, logits_to_keep=asked).logits
        assert found.shape == expected.shape
        assert_close(found, expected)
