import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from captioner.config import RewardConfig, RunConfig
from captioner.data.batches import collate
from captioner.decoding.options import GenerationOptions
from captioner.decoding.stream import generate
from captioner.infer.captioner import Captioner
from captioner.infer.torch_backend import TorchBackend
from captioner.model.modeling_captioner import IGNORE_INDEX, CaptionerForConditionalGeneration
from captioner.training.rewards import draw_captions, most_probable_captions, policy_gradient_loss, uniform_numbers
from captioner.training.trainer import Trainer

Recipe = Callable[..., RunConfig]
PHASES = """phases=[
    {name: words, epochs: 3, learning_rates: {trunk: 0.002, bridge: 0.002, decoder: 0.002}, label_smoothing: 0.0},
    {name: reward, epochs: 3, learning_rates: {trunk: 0.001, bridge: 0.001, decoder: 0.001}, warmup_fraction: 0.3,
     objectives: {reward: 1.0}, reward: {num_samples: 10}},
]"""


@pytest.fixture
def model(recipe: Recipe) -> CaptionerForConditionalGeneration:
    """The tiny model with logits far enough apart that distributions are not flat."""
    model = Trainer(recipe(), resume=False).model.eval()
    with torch.no_grad():
        model.decoder.embed_tokens.weight.mul_(5)
    return model


def test_captions_are_drawn_as_often_as_the_model_says(model: CaptionerForConditionalGeneration) -> None:
    encoded = model.encoder(torch.zeros(1, 3, 32, 32)).last_hidden_state
    drawn = draw_captions(model, encoded, uniform_numbers(["a photo"], 20_000, 1, (0,)))
    found = drawn.flatten().bincount(minlength=model.config.vocab_size) / 20_000
    start = torch.tensor([[model.config.decoder_start_token_id]])
    expected = model(decoder_input_ids=start, encoder_outputs=BaseModelOutput(encoded)).logits[0, 0].softmax(-1)
    torch.testing.assert_close(found, expected, atol=0.015, rtol=0)


def test_what_is_drawn_for_an_image_does_not_depend_on_its_batch(model: CaptionerForConditionalGeneration) -> None:
    """Nor on images that leave the batch before it does, as they do where a token that is often drawn ends captions."""
    images, names = torch.rand(5, 3, 32, 32), ["a", "b", "c", "d", "e"]
    encoded = model.encoder(images).last_hidden_state
    uniforms = uniform_numbers(names, 3, 12, (0, 7))
    with torch.no_grad():
        model.decoder.embed_tokens.weight.mul_(0.55)
    drawn = draw_captions(model, encoded, uniforms)
    model.config.eos_token_id = int(drawn[drawn != IGNORE_INDEX].mode().values)
    together = draw_captions(model, encoded, uniforms)
    lengths = set()
    for row, name in enumerate(names):
        alone = draw_captions(model, encoded[row : row + 1], uniform_numbers([name], 3, 12, (0, 7)))
        assert torch.equal(alone[0], together[row][:, : alone.shape[2]])
        assert (together[row][:, alone.shape[2] :] == IGNORE_INDEX).all()
        lengths.add(alone.shape[2])
    assert not torch.equal(together[0], together[1])
    assert len(lengths) > 2, lengths


def test_the_greedy_baseline_is_what_generate_writes(model: CaptionerForConditionalGeneration) -> None:
    encoded = model.encoder(torch.rand(6, 3, 32, 32)).last_hidden_state
    labels = most_probable_captions(model, encoded, 12)
    outputs = {"encoder_outputs": BaseModelOutput(encoded)}
    for row, (best, *_) in zip(labels[:, 0].tolist(), generate(model, outputs, GenerationOptions(1, 12)), strict=True):
        end = [] if best.end_log_prob is None else [model.config.eos_token_id]
        assert [token for token in row if token != IGNORE_INDEX] == [*best.token_ids, *end]


def test_the_gradient_raises_what_did_better_than_the_others_to_the_end() -> None:
    """The end of sequence learns too."""
    labels = [3, 2, 4, 3, 2]  # two captions
    logits = torch.zeros(5, 5, requires_grad=True)
    policy_gradient_loss(logits, torch.tensor(labels), torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0])).backward()
    assert logits.grad is not None
    chosen = logits.grad[range(5), labels]
    assert (chosen[:2] < 0).all() and (chosen[2:] > 0).all()


def test_a_caption_that_breaks_off_earns_less_than_one_that_ends(recipe: Recipe) -> None:
    trainer = Trainer(recipe("phases.0.objectives={reward: 1.0}"), resume=False)
    assert trainer.task.critic is not None
    sample, tokenizer = trainer.data.train[0], trainer.processor.tokenizer
    whole = tokenizer(sample.captions[0]).input_ids
    labels = torch.tensor([[whole, [*whole[:-1], IGNORE_INDEX], [*whole[:-2], whole[-1], IGNORE_INDEX]]])
    ended, cut, shorter = trainer.task.critic.reward([sample.id], labels)[0].tolist()
    assert ended == pytest.approx(10, abs=1e-4)
    assert ended > cut and ended > shorter


def test_the_advantage_is_the_reward_above_the_other_captions_or_the_greedy_one(recipe: Recipe) -> None:
    trainer = Trainer(recipe("phases.0.objectives={reward: 1.0}"), resume=False)
    train_set, _ = trainer._datasets(trainer.config.phases[0])
    batch, critic = collate([train_set[index] for index in range(3)], 1), trainer.task.critic
    batch.labels[1] = IGNORE_INDEX  # an image without captions has nothing to be judged by
    assert critic is not None
    model = trainer.model.eval()
    encoded = model.encoder(**batch.encoder_inputs).last_hidden_state
    others = critic.draw(model, encoded, batch, RewardConfig(num_samples=3), step=0)
    first = others.rewards[0, 0] - others.rewards[0, 1:].mean()
    torch.testing.assert_close(others.advantages[0, 0], first)
    greedy = critic.draw(model, encoded, batch, RewardConfig(num_samples=3, baseline="greedy"), step=0)
    baseline = critic.reward(batch.ids, most_probable_captions(model, encoded, critic.max_tokens))
    torch.testing.assert_close(greedy.advantages[[0, 2]], (greedy.rewards - baseline)[[0, 2]])
    assert not greedy.advantages[1].any() and not others.advantages[1].any()


def test_a_step_encodes_its_photos_once_draws_without_the_decoders_dropout_and_learns_with_it(recipe: Recipe) -> None:
    trainer = Trainer(recipe("phases.0.objectives={reward: 1.0}", "model.dropout=0.5"), resume=False)
    phase = trainer.config.phases[0]
    joint, train_set, _ = trainer.enter(phase)
    batch = collate([train_set[index] for index in range(3)], 1)
    encoded, modes = [], []
    trainer.model.encoder.register_forward_hook(lambda *_: encoded.append(1))
    trainer.model.decoder.register_forward_hook(lambda decoder, *_: modes.append(decoder.training))
    joint(batch, phase, 0)
    *drawing, learning = modes
    assert len(encoded) == 1 and drawing and not any(drawing) and learning
    assert all(module.training for module in trainer.model.decoder.modules())


def test_rewards_rise_and_captions_still_end(recipe: Recipe, draw_shapes: Callable[..., None], tmp_path: Path) -> None:
    draw_shapes(tmp_path / "shapes", images=1000)
    small = "optimization.batch_size=16"
    trainer = Trainer(recipe(PHASES, small, data=tmp_path / "shapes" / "captions.csv"), resume=False)
    log = map(json.loads, (trainer.run().parent / "log.jsonl").read_text().splitlines())
    rewards = [line["reward"] for line in log if "reward" in line]
    assert sum(rewards[-25:]) > 1.1 * sum(rewards[:25])
    images = [sample.image for sample in trainer.data.validation]
    captioner = Captioner(TorchBackend(trainer.model, trainer.processor), "last", tmp_path)
    captions = captioner(images, num_beams=1, max_new_tokens=16)
    assert all(re.fullmatch(r"a \w+ \w+ (above|left of) a \w+ \w+", caption.text) for caption in captions)
