from collections import Counter
from dataclasses import FrozenInstanceError

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from captioner.decoding import cuda_graph
from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import GenerationOptions
from captioner.decoding.step_decoder import StepDecoder
from captioner.decoding.stream import GenerationStream, generate, rounded_up
from captioner.errors import CaptionerError
from captioner.model.modeling_captioner import CaptionerForConditionalGeneration

MODES = {
    "greedy": GenerationOptions(num_beams=1),
    "beams": GenerationOptions(num_beams=4, num_return_sequences=3, no_repeat_ngram_size=2, length_penalty=0.5),
    "sampling": GenerationOptions(do_sample=True, temperature=1.3, top_k=9, top_p=0.9, num_return_sequences=3),
    "seeded": GenerationOptions(do_sample=True, temperature=1.3, top_k=9, top_p=0.9, num_return_sequences=3, seed=5),
    "least": GenerationOptions(num_beams=1, min_new_tokens=4),
    "prefix": GenerationOptions(num_beams=3, prefix_ids=(5, 9)),
}
DETERMINISTIC = ("greedy", "beams", "seeded", "least", "prefix")

SEARCHES = {
    "greedy": GenerationOptions(num_beams=1),
    "greedy, constrained": GenerationOptions(num_beams=1, min_new_tokens=5, no_repeat_ngram_size=2),
    "greedy, banned words": GenerationOptions(num_beams=1, bad_words_ids=((5,), (7, 8), (9, 4, 9))),
    "greedy, prefix": GenerationOptions(num_beams=1, prefix_ids=(5, 9, 6), no_repeat_ngram_size=1),
    "2 beams, short": GenerationOptions(num_beams=2, max_new_tokens=5),
    "3 beams": GenerationOptions(num_beams=3),
    "4 beams, no length penalty": GenerationOptions(num_beams=4, length_penalty=0.0, num_return_sequences=4),
    "4 beams, for long": GenerationOptions(num_beams=4, length_penalty=2.0, num_return_sequences=2),
    "4 beams, for much shorter": GenerationOptions(num_beams=4, length_penalty=-5.0, num_return_sequences=4),
    "4 beams, for much longer": GenerationOptions(num_beams=4, length_penalty=9.0, num_return_sequences=4),
    "4 beams, for short": GenerationOptions(num_beams=4, length_penalty=-1.0, num_return_sequences=4),
    "3 beams, constrained": GenerationOptions(
        num_beams=3, min_new_tokens=6, no_repeat_ngram_size=2, length_penalty=0.5, num_return_sequences=2
    ),
    "4 beams, banned words": GenerationOptions(num_beams=4, bad_words_ids=((5,), (7, 8)), num_return_sequences=4),
    "greedy, repetition penalty": GenerationOptions(num_beams=1, repetition_penalty=1.4),
    "greedy, prefix, repetition bonus": GenerationOptions(num_beams=1, repetition_penalty=0.8, prefix_ids=(5, 9)),
    "3 beams, repetition penalty": GenerationOptions(
        num_beams=3, repetition_penalty=1.7, num_return_sequences=3, min_new_tokens=2, no_repeat_ngram_size=3
    ),
    "3 beams, repetition bonus": GenerationOptions(num_beams=3, repetition_penalty=0.7, prefix_ids=(5, 9)),
    "4 beams, early stopping": GenerationOptions(num_beams=4, early_stopping=True, num_return_sequences=4),
    "4 beams, early stopping for long": GenerationOptions(num_beams=4, early_stopping=True, length_penalty=2.0),
    "4 beams, never early": GenerationOptions(
        num_beams=4, early_stopping="never", num_return_sequences=4, prefix_ids=(5, 9)
    ),
    "4 beams, never early for short": GenerationOptions(
        num_beams=4, early_stopping="never", length_penalty=-1.0, num_return_sequences=4
    ),
    "4 beams, prefix": GenerationOptions(num_beams=4, prefix_ids=(5, 9), no_repeat_ngram_size=3, min_new_tokens=3),
}


@pytest.fixture(scope="module")
def pixel_values() -> torch.Tensor:
    return torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def teacher_forced(
    model: CaptionerForConditionalGeneration, image: torch.Tensor, hypothesis: Hypothesis
) -> list[float]:
    """Log-probabilities by one uncached forward pass over the whole caption."""
    end = [] if hypothesis.end_log_prob is None else [model.config.eos_token_id]
    labels = torch.tensor([[*hypothesis.token_ids, *end]])
    with torch.no_grad():
        logits = model(pixel_values=image[None], labels=labels, use_cache=False).logits
    return logits.log_softmax(-1).gather(-1, labels[..., None])[0, :, 0].tolist()


def by_transformers(
    model: CaptionerForConditionalGeneration, encoder_outputs: BaseModelOutput, options: GenerationOptions
) -> list[tuple[int, ...]]:
    """The captions that transformers' own `generate` writes, end of sequence included."""
    start, end = model.config.decoder_start_token_id, model.config.eos_token_id
    prompt = torch.tensor([[start, *options.prefix_ids]] * len(encoder_outputs.last_hidden_state))
    sequences = model.generate(
        encoder_outputs=encoder_outputs,
        decoder_input_ids=prompt,
        max_new_tokens=min(options.max_new_tokens, model.config.max_position_embeddings - len(options.prefix_ids)),
        min_new_tokens=options.min_new_tokens,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        bad_words_ids=[list(ids) for ids in options.bad_words_ids] or None,
        repetition_penalty=float(options.repetition_penalty),
        early_stopping=options.early_stopping,
        num_beams=options.num_beams,
        num_return_sequences=options.num_return_sequences,
        length_penalty=options.length_penalty,
        do_sample=options.do_sample,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
    )
    rows = (row[1:] for row in sequences.tolist())
    return [tuple(row[: row.index(end) + 1] if end in row else row) for row in rows]


def with_end(model: CaptionerForConditionalGeneration, hypothesis: Hypothesis) -> tuple[int, ...]:
    return hypothesis.token_ids + ((model.config.eos_token_id,) if hypothesis.end_log_prob is not None else ())


@pytest.mark.parametrize("name", SEARCHES)
def test_captions_are_those_of_transformers_generate(model, name):
    features = 2 * torch.randn(200, 16, model.config.hidden_size, generator=torch.Generator().manual_seed(4))
    outputs = BaseModelOutput(last_hidden_state=features)
    groups = generate(model, {"encoder_outputs": outputs}, SEARCHES[name])
    ours = [with_end(model, hypothesis) for group in groups for hypothesis in group]
    assert ours == by_transformers(model, outputs, SEARCHES[name])
    assert len(set(ours)) > 20, "the images make too little difference"


@pytest.mark.parametrize("length_penalty", [-50, -10, -10.5, -2, 0, 0.0, 10, 50])
@pytest.mark.parametrize("fields", [{}, {"force_words_ids": ((5,),)}, {"num_beam_groups": 2, "diversity_penalty": 0.5}])
def test_captions_are_ranked_by_length_penalty_however_large(model, pixel_values, length_penalty, fields):
    """transformers itself finds none where scores fall below -1e9."""
    options = GenerationOptions(num_beams=4, num_return_sequences=4, length_penalty=length_penalty, **fields)
    lengths = []
    for group in generate(model, {"pixel_values": pixel_values}, options):
        sums = [sum(one.log_probs) + (one.end_log_prob or 0) for one in group]
        lengths.append([len(with_end(model, one)) for one in group])
        scores = [total / length**length_penalty for total, length in zip(sums, lengths[-1], strict=True)]
        if "diversity_penalty" not in fields:  # which is part of the scores
            assert scores == sorted(scores, reverse=True)
    assert len(lengths) == len(pixel_values) and all(lengths)


def test_unseeded_draws_are_those_of_transformers_generate(model, pixel_values):
    with torch.no_grad():
        outputs = model.encoder(pixel_values=pixel_values[:1])
    torch.manual_seed(8)
    ours = Counter(with_end(model, h) for h in generate(model, {"encoder_outputs": outputs}, MODES["sampling"])[0])
    torch.manual_seed(8)
    assert ours == Counter(by_transformers(model, outputs, MODES["sampling"]))


@pytest.mark.parametrize("mode", ["greedy", "beams", "seeded"])
def test_images_leave_as_they_are_done_and_an_image_is_encoded_once_for_all_its_captions(
    model, pixel_values, mode, monkeypatch
):
    """That it changes no caption is shown by those of each image alone, below."""
    images, keep = [], StepDecoder.keep

    def spy(decoder: StepDecoder, kept: torch.Tensor) -> None:
        keep(decoder, kept)
        layers = decoder.cache.cross_attention_cache.layers
        assert {len(layer.keys) for layer in layers} == {len(kept)}
        images.append(len(kept))

    monkeypatch.setattr(StepDecoder, "keep", spy)
    assert len(generate(model, {"pixel_values": pixel_values}, MODES[mode])) == len(pixel_values)
    assert images == sorted(set(images), reverse=True) and 0 < images[-1] < len(pixel_values)


def test_a_prefix_starts_every_caption_and_banned_words_are_in_none(model, pixel_values):
    free = generate(model, {"pixel_values": pixel_values}, GenerationOptions(num_beams=2, prefix_ids=(5, 9)))
    assert {best.token_ids[:2] for best, *_ in free} == {(5, 9)}
    banned = Counter(token for best, *_ in free for token in best.token_ids[2:]).most_common(1)[0][0]
    options = GenerationOptions(num_beams=2, prefix_ids=(5, 9), bad_words_ids=((banned,),))
    for best, *_ in generate(model, {"pixel_values": pixel_values}, options):
        assert banned not in best.token_ids[2:]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_what_is_banned_after_the_start_alone_may_come_later(model, pixel_values, num_beams):
    start = model.config.decoder_start_token_id
    free = generate(model, {"pixel_values": pixel_values}, GenerationOptions(num_beams=num_beams))
    firsts = {best.token_ids[0] for best, *_ in free if best.token_ids}
    banned = tuple((start, first) for first in firsts)
    bound = generate(
        model, {"pixel_values": pixel_values}, GenerationOptions(num_beams=num_beams, bad_words_ids=banned)
    )
    assert firsts and not firsts & {best.token_ids[0] for best, *_ in bound if best.token_ids}
    assert firsts & {token for best, *_ in bound for token in best.token_ids[1:]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prefix_ids": tuple(range(3, 19))}, "a prefix of 16 tokens leaves no room for a caption"),
        ({"prefix_ids": (3, 64)}, r"tokens \(3, 64\): this model has those from 0 to"),
        ({"bad_words_ids": ((3,), (-1,))}, r"tokens \(-1,\): this model has"),
        ({"prefix_ids": (3, 2)}, "hold the end of sequence, 2"),
    ],
)
def test_tokens_that_the_model_cannot_take_are_refused(model, pixel_values, fields, message):
    with pytest.raises(CaptionerError, match=message):
        generate(model, {"pixel_values": pixel_values[:1]}, GenerationOptions(**fields))


@pytest.mark.parametrize(
    "fields", [{"num_beams": 1}, {"num_beams": 2}, {"do_sample": True}, {"do_sample": True, "seed": 3}]
)
def test_rules_that_no_caption_keeps_are_an_error(model, pixel_values, fields):
    everything = tuple((token,) for token in range(model.config.vocab_size))
    with pytest.raises(CaptionerError, match="found no caption that keeps all the rules"):
        generate(model, {"pixel_values": pixel_values[:2]}, GenerationOptions(bad_words_ids=everything, **fields))


def test_a_draw_that_nothing_may_follow_is_left_out_and_the_others_stay(model, pixel_values):
    options = {"do_sample": True, "seed": 3, "num_return_sequences": 20}
    free = generate(model, {"pixel_values": pixel_values[:2]}, GenerationOptions(**options))
    stuck = Counter(token for one in free[0] for token in one.token_ids).most_common()[-1][0]
    nothing_after = tuple((stuck, token) for token in range(model.config.vocab_size))
    kept = generate(
        model, {"pixel_values": pixel_values[:2]}, GenerationOptions(bad_words_ids=nothing_after, **options)
    )
    longest = model.config.max_position_embeddings
    for before, after in zip(free, kept, strict=True):
        possible = [one for one in before if stuck not in one.token_ids[: longest - 1]]
        assert [one.token_ids for one in after] == [one.token_ids for one in possible]
    assert len(kept[0]) < 20


@pytest.mark.parametrize("mode", MODES)
def test_log_probs_are_those_of_a_teacher_forced_pass(model, pixel_values, mode):
    torch.manual_seed(3)
    lengths = Counter()
    for image, hypotheses in zip(
        pixel_values, generate(model, {"pixel_values": pixel_values}, MODES[mode]), strict=True
    ):
        assert len(hypotheses) == MODES[mode].num_return_sequences
        for hypothesis in hypotheses:
            end = [] if hypothesis.end_log_prob is None else [hypothesis.end_log_prob]
            values = [*hypothesis.log_probs, *end]
            assert len(hypothesis.log_probs) == len(hypothesis.token_ids)
            assert values == pytest.approx(teacher_forced(model, image, hypothesis), abs=1e-4)
            assert hypothesis.mean_log_prob == pytest.approx(sum(values) / len(values))
            lengths[len(values)] += 1
    assert len(lengths) > 2, "captions of one length would not show a wrong end"


@pytest.mark.parametrize("mode", DETERMINISTIC)
def test_a_caption_does_not_depend_on_the_batch_it_came_in(model, pixel_values, mode):
    together = generate(model, {"pixel_values": pixel_values}, MODES[mode])
    alone = [generate(model, {"pixel_values": image[None]}, MODES[mode])[0] for image in pixel_values]
    assert [[h.token_ids for h in group] for group in together] == [[h.token_ids for h in group] for group in alone]


def stream(
    model: CaptionerForConditionalGeneration,
    features: torch.Tensor,
    options: GenerationOptions,
    batch_size: int,
    captures: cuda_graph.Captures | None = None,
) -> list[list[tuple[int, ...]]]:
    engine = GenerationStream(model, options, captures=captures)
    groups = [group for batch in features.split(batch_size) for group in engine.add(batch)] + engine.finish()
    return [[with_end(model, hypothesis) for hypothesis in group] for group in groups]


STREAMS = {name: MODES[name] for name in DETERMINISTIC} | {
    "constrained": SEARCHES["3 beams, constrained"],
    "greedy, constrained": SEARCHES["greedy, constrained"],
    "banned": SEARCHES["4 beams, banned words"],
    "one token": GenerationOptions(num_beams=2, max_new_tokens=1),
}


@pytest.mark.parametrize("name", STREAMS)
def test_images_that_take_the_places_of_others_get_the_captions_they_get_alone(model, name):
    features = 2 * torch.randn(43, 16, model.config.hidden_size, generator=torch.Generator().manual_seed(4))
    alone = [group for image in features.split(1) for group in stream(model, image, STREAMS[name], 1)]
    assert stream(model, features, STREAMS[name], batch_size=5) == alone
    assert stream(model, features, STREAMS[name], batch_size=1) == alone


CAPTURED = STREAMS | {
    "diverse": GenerationOptions(num_beams=4, num_beam_groups=2, diversity_penalty=0.5, num_return_sequences=4),
    "forced": GenerationOptions(num_beams=4, force_words_ids=((5, 9),), num_return_sequences=2),
}


def tensors_of(thing: object, found: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    """All tensors that it holds, but a model's, in an order that is the same for its like."""
    if isinstance(thing, torch.Tensor):
        found.setdefault(id(thing), thing)
    elif isinstance(thing, dict | list | tuple):
        for item in thing.values() if isinstance(thing, dict) else thing:
            tensors_of(item, found)
    elif hasattr(thing, "__dict__") and not isinstance(thing, torch.nn.Module | type) and thing is not None:
        for name, item in vars(thing).items():
            if name not in ("plan", "model", "search"):
                tensors_of(item, found)
    return found


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Captures as a GPU makes them, of tensors that are void until a replay; gives what is replayed."""
    names: list[str] = []

    def capture(work, device):
        owner = getattr(work, "__self__", None)
        if isinstance(owner, cuda_graph.CapturedStep):
            owners = {id(one): one for one, _ in owner.state}.values()
            layers = next(iter(owners)).cache.self_attention_cache.layers
            as_captured = [(one, dict(vars(one))) for one in (*owners, *layers)]

            def replay_step() -> None:
                for one, attributes in as_captured:
                    vars(one).update(attributes)  # a graph knows these tensors alone
                work()
                names.append("step")

            return replay_step, None

        def made(result: object) -> list[torch.Tensor]:
            constants = tensors_of([result.plan.prompt, vars(result.plan.search)], {})
            tensors = tensors_of(result, {}).values()
            return [one for one in tensors if id(one) not in constants and 0 not in one.stride()]

        result = work()
        places = made(result)

        def replay() -> None:
            for place, tensor in zip(places, made(work()), strict=True):
                place.copy_(tensor)
            names.append("begin")

        for place in places:
            place.zero_() if place.dtype in (torch.bool, torch.long) else place.fill_(torch.nan)
        return replay, result

    monkeypatch.setattr(cuda_graph, "capture", capture)
    return names


@pytest.mark.parametrize("name", CAPTURED)
def test_captured_work_reads_and_writes_the_same_tensors_ever_after(model, name, replays):
    """Through several streams of different lengths, the last of them with a smaller batch at its end."""
    features = 2 * torch.randn(43, 16, model.config.hidden_size, generator=torch.Generator().manual_seed(4))
    captures = cuda_graph.Captures()
    for turn, count in enumerate((11, 25, 3, 43)):
        given = features[-count:]
        expected = stream(model, given, CAPTURED[name], batch_size=5)
        assert stream(model, given, CAPTURED[name], batch_size=5, captures=captures) == expected, turn
    assert replays.count("begin") >= 11
    assert replays.count("step") > 20 or name == "one token"
    assert stream(model, features, MODES["greedy"], batch_size=5, captures=captures) == stream(
        model, features, MODES["greedy"], batch_size=5
    )


def test_draws_repeat_with_torchs_seed_whether_they_are_captured_or_not(model, replays):
    features = 2 * torch.randn(13, 16, model.config.hidden_size, generator=torch.Generator().manual_seed(4))
    captures, found = cuda_graph.Captures(), []
    for _ in range(3):
        torch.manual_seed(3)
        found.append(stream(model, features, MODES["sampling"], batch_size=5, captures=captures))
    assert found[0] == found[1] == found[2] and "begin" not in replays and "step" in replays


def test_few_captures_are_kept_and_two_streams_never_share_one(model, replays):
    features = torch.randn(20, 16, model.config.hidden_size, generator=torch.Generator().manual_seed(4))
    captures = cuda_graph.Captures()
    expected = stream(model, features, MODES["beams"], batch_size=4)
    streams = [GenerationStream(model, MODES["beams"], captures=captures) for _ in range(2)]
    found = [[], []]
    for batch in features.split(4):
        for one, groups in zip(streams, found, strict=True):
            groups += one.add(batch)
    for one, groups in zip(streams, found, strict=True):
        groups += one.finish()
        assert [[with_end(model, hypothesis) for hypothesis in group] for group in groups] == expected
    for longest in range(2, 8):
        for _ in range(2):
            stream(model, features, GenerationOptions(num_beams=1, max_new_tokens=longest), 4, captures)
    assert len(captures.kept) == cuda_graph.KEPT


def test_places_are_rounded_up():
    assert [rounded_up(count) for count in (1, 2, 3, 5, 8, 9, 16, 17, 33, 64)] == [
        1, 2, 4, 8, 8, 16, 16, 32, 48, 64
    ]  # fmt: skip


def test_work_that_cannot_be_captured_runs_as_before(model, monkeypatch, caplog):
    features = 2 * torch.randn(43, 16, model.config.hidden_size, generator=torch.Generator().manual_seed(4))
    expected = stream(model, features, MODES["beams"], batch_size=5)
    message = "operation not permitted when stream is capturing"

    def capture(work, device):
        if isinstance(getattr(work, "__self__", None), cuda_graph.CapturedStep):
            for owner, attribute in work.__self__.state:
                setattr(owner, attribute, None)  # as a capture does that got half-way
        raise RuntimeError(f"{message}\nCUDA kernel errors might be reported …")

    monkeypatch.setattr(cuda_graph, "capture", capture)
    captures = cuda_graph.Captures()
    for _ in range(2):
        assert stream(model, features, MODES["beams"], batch_size=5, captures=captures) == expected
    assert sorted(set(caplog.messages)) == [
        f"decoding launches its kernels one by one: {message}",
        f"image encoding launches its kernels one by one: {message}",
    ]
    assert len(caplog.messages) <= 3


@pytest.mark.parametrize("name", ["greedy", "beams"])
def test_the_decoder_stays_full_while_there_are_images(model, name, monkeypatch):
    features = 2 * torch.randn(60, 16, model.config.hidden_size, generator=torch.Generator().manual_seed(4))
    rows, step = [], StepDecoder.step

    def spy(decoder: StepDecoder, tokens: torch.Tensor, *args: object) -> torch.Tensor:
        rows.append(len(tokens))
        return step(decoder, tokens, *args)

    monkeypatch.setattr(StepDecoder, "step", spy)
    for batch in features.split(6):
        stream(model, batch, MODES[name], 6)
    apart, places = len(rows), sum(rows)
    rows.clear()
    stream(model, features, MODES[name], 6)
    assert len(rows) < 0.9 * apart and sum(rows) < places
    assert rows.count(6) > len(rows) - model.config.max_position_embeddings


def test_features_computed_before_give_the_same_captions_as_pixels(model, pixel_values):
    with torch.no_grad():
        encoder_outputs = model.encoder(pixel_values=pixel_values)
    options = MODES["beams"]
    from_pixels = generate(model, {"pixel_values": pixel_values}, options)
    from_outputs = generate(model, {"encoder_outputs": encoder_outputs}, options)
    assert [[h.token_ids for h in group] for group in from_pixels] == [[h.token_ids for h in g] for g in from_outputs]


def test_beams_come_best_first(model, pixel_values):
    options = GenerationOptions(num_beams=4, num_return_sequences=4, length_penalty=0.0)
    for group in generate(model, {"pixel_values": pixel_values}, options):
        scores = [sum(h.log_probs) + (h.end_log_prob or 0.0) for h in group]
        assert scores == sorted(scores, reverse=True)


def test_seeds_decide_what_is_drawn(model, pixel_values):
    def draw(seed: int) -> list[tuple[int, ...]]:
        options = GenerationOptions(do_sample=True, seed=seed)
        return [group[0].token_ids for group in generate(model, {"pixel_values": pixel_values}, options)]

    first = draw(1)
    torch.manual_seed(99)  # of no concern to seeded draws
    assert draw(1) == first != draw(2)


def test_seeded_draws_follow_the_distribution_that_unseeded_draws_follow(model, pixel_values):
    """First tokens of many draws for one image: shares within 4 standard errors of the warped softmax."""
    image = {"pixel_values": pixel_values[:1]}
    start = torch.tensor([[model.config.decoder_start_token_id]])
    with torch.no_grad():
        logits = model(**image, decoder_input_ids=start).logits[0, -1] / 1.5
    kept = logits.topk(4)
    expected = dict(zip(kept.indices.tolist(), kept.values.softmax(-1).tolist(), strict=True))
    draws = 4000
    for seed in (7, None):
        torch.manual_seed(7)
        options = GenerationOptions(
            do_sample=True, temperature=1.5, top_k=4, seed=seed, num_return_sequences=draws, max_new_tokens=1
        )
        end = model.config.eos_token_id
        counts = Counter(h.token_ids[0] if h.token_ids else end for h in generate(model, image, options)[0])
        assert counts.keys() <= expected.keys()
        for token, share in expected.items():
            assert counts[token] / draws == pytest.approx(share, abs=4 * (share * (1 - share) / draws) ** 0.5)


def test_no_caption_outgrows_the_models_positions(model, pixel_values):
    hypotheses = generate(model, {"pixel_values": pixel_values}, GenerationOptions(num_beams=1))
    longest = max((best for best, *_ in hypotheses), key=lambda hypothesis: len(hypothesis.token_ids))
    assert len(longest.token_ids) == model.config.max_position_embeddings and longest.end_log_prob is None
    with pytest.raises(CaptionerError, match="min_new_tokens is 30; this model writes at most 16"):
        generate(model, {"pixel_values": pixel_values[:1]}, GenerationOptions(min_new_tokens=30))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_beams": 0}, "num_beams must be at least 1; it is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens must be at most max_new_tokens"),
        ({"length_penalty": float("nan")}, "length_penalty must be between -50 and 50"),
        ({"bad_words_ids": ((4,), ())}, "bad_words_ids must be sequences of at least 1 token"),
        ({"top_p": 0.9}, "top_p must be left out unless do_sample is on"),
        ({"seed": 1}, "seed must be left out unless do_sample is on"),
        ({"do_sample": True, "top_p": 0.0}, "top_p must be above 0"),
        ({"do_sample": True, "temperature": 0.0}, "temperature must be above 0"),
        ({"do_sample": True, "num_beams": 3}, "num_beams must be 1 or left out with do_sample"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences must be at most num_beams"),
    ],
)
def test_options_without_meaning_are_refused(fields, message):
    with pytest.raises(CaptionerError, match=message):
        GenerationOptions(**fields)


def test_beams_by_default_suit_the_rest():
    assert GenerationOptions().num_beams == 3
    assert GenerationOptions(num_return_sequences=5).num_beams == 5
    assert GenerationOptions(do_sample=True, num_return_sequences=5).num_beams == 1
    with pytest.raises(FrozenInstanceError):
        GenerationOptions().num_beams = 2
