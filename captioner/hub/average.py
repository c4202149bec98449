"""Averages the weights of several trainings of one model, such as the ends of a learning rate's cycles."""

from collections.abc import Sequence
from pathlib import Path

from captioner.errors import CaptionerError
from captioner.files import new_folder
from captioner.hub.card import read_card, usage, write_card
from captioner.hub.find import find_model
from captioner.hub.load import load_model, save_model
from captioner.model.configuration_captioner import CaptionerConfig

MEANING = sorted(CaptionerConfig.__annotations__.keys() - {"image_size", "dropout", "initializer_range", "use_cache"})
"""Fields of the configuration that weights depend on for what they mean, or even for their number."""


def average_models(sources: Sequence[str | Path], output: Path) -> None:
    """Write the captioner `output`, whose weights are the mean of these captioners'; all else is the first's.

    Where trainings went on from the same weights, the mean often errs less than each (Izmailov et al. 2018,
    https://arxiv.org/abs/1803.05407, section 3; Wortsman et al. 2022, https://arxiv.org/abs/2203.05482).

    Raises:
        CaptionerError: fewer than two captioners, one that cannot be read or is not the same model as the first
            or has other words; `output` is there already.
    """
    if len(sources) < 2:
        raise CaptionerError("one model alone has no average: name two or more")
    with new_folder(output) as partial:
        (folder, first), *others = (find_model(source) for source in sources)
        model, processor = load_model(folder, first)
        card = read_card(folder, first)
        mean = model.state_dict()
        for count, (its_folder, name) in enumerate(others, start=2):
            other, its_processor = load_model(its_folder, name)
            weights = other.state_dict()
            if its_processor.tokenizer.get_vocab() != processor.tokenizer.get_vocab():
                raise CaptionerError(f"{name}: its vocabulary is not that of {first}")
            unlike = [field for field in MEANING if getattr(other.config, field) != getattr(model.config, field)]
            unlike = unlike or [key for key in mean if weights[key].shape != mean[key].shape]
            if unlike:
                raise CaptionerError(f"{name}: not the same model as {first}: {', '.join(unlike[:5])}")
            for key, tensor in mean.items():
                if tensor.is_floating_point():  # counters stay; new tensors, since some of the model's are tied
                    mean[key] = tensor.lerp(weights[key], 1 / count)
        model.load_state_dict(mean)
        save_model(model, processor, partial)
        names = [first, *(name for _, name in others)]
        write_card(partial, _card(names, output.name), card, first)


def _card(names: Sequence[str], folder: str) -> str:
    return f"""# {folder}

A captioner whose weights are the mean of {", ".join(names)}, made by `captioner average`.

{usage(folder)}"""
