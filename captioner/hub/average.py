"""Averages the weights of saved models that were trained from the same start."""

from collections.abc import Sequence
from pathlib import Path

from captioner.errors import CaptionerError
from captioner.files import new_folder
from captioner.hub.card import read_card, usage, write_card
from captioner.hub.find import find_model
from captioner.hub.load import load_model, save_model
from captioner.model.configuration_captioner import CaptionerConfig

MUST_AGREE = sorted(
    CaptionerConfig.__annotations__.keys() - {"image_size", "dropout", "initializer_range", "use_cache"}
)
"""Fields of the configuration that give the weights their meaning or their number."""


def average_models(sources: Sequence[str | Path], output: Path) -> None:
    """Write a model whose weights are the mean of the sources' weights; everything else is the first source's.

    For models that were fine-tuned from the same weights, the mean is often better than each of them (Izmailov et al.
    2018, https://arxiv.org/abs/1803.05407, section 3; Wortsman et al. 2022, https://arxiv.org/abs/2203.05482).

    Raises:
        CaptionerError: there are fewer than two sources; one cannot be read, or differs from the first in architecture
            or vocabulary; `output` exists.
    """
    if len(sources) < 2:
        raise CaptionerError("average needs two or more models")
    with new_folder(output) as partial:
        (folder, first), *others = (find_model(source) for source in sources)
        model, processor = load_model(folder, first)
        card = read_card(folder, first)
        mean = model.state_dict()
        for count, (its_folder, name) in enumerate(others, start=2):
            other, its_processor = load_model(its_folder, name)
            weights = other.state_dict()
            if its_processor.tokenizer.get_vocab() != processor.tokenizer.get_vocab():
                raise CaptionerError(f"{name}: its vocabulary differs from {first}'s")
            differences = [
                field for field in MUST_AGREE if getattr(other.config, field) != getattr(model.config, field)
            ]
            differences = differences or [key for key in mean if weights[key].shape != mean[key].shape]
            if differences:
                raise CaptionerError(f"{name}: differs from {first} in {', '.join(differences[:5])}")
            for key, tensor in mean.items():
                if tensor.is_floating_point():  # counters stay as they are; not in place, because some weights are tied
                    mean[key] = tensor.lerp(weights[key], 1 / count)
        model.load_state_dict(mean)
        save_model(model, processor, partial)
        names = [first, *(name for _, name in others)]
        write_card(partial, _card(names, output.name), card, first)


def _card(names: Sequence[str], folder: str) -> str:
    return f"""# {folder}

A captioner whose weights are the mean of {", ".join(names)}, made by `captioner average`.

{usage(folder)}"""
