"""Search settings of a recipe with Optuna: every trial is a training, and later trials learn from earlier ones.

    pip install -e ".[sweep]"
    python examples/sweep.py configs/tiny.yaml --trials 10 \
        phases.0.learning_rates.decoder=1e-4..1e-2:log model.num_hidden_layers=1..3 optimization.batch_size=16,32

A key takes a range, low..high (of integers if both ends are integers; with :log, values are drawn on a log scale), or a
choice, a,b,c. Any other key=value applies to all trials. Trial 7 is the training OUTPUT/007. Run the same command again
to continue after an interruption or with more trials. A trial that fails, for example on a non-finite loss, ranks below
all others. The output is a recipe and overrides for `train.py --config`.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import transformers
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from captioner import train
from captioner.config import RunConfig, load_config
from captioner.errors import CaptionerError

NUMBER = r"(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)"
RANGE = re.compile(rf"{NUMBER}\.\.{NUMBER}(:log)?")


def sweep(recipe: Path, changes: list[str], trials: int, output: Path) -> list[str]:
    """Train until `output` holds this many finished trials; gives the best one's changes to the recipe.

    Raises:
        CaptionerError: there is nothing to search, or the recipe does not take it; `output` holds another sweep; no
            trial succeeded.
    """
    texts = {key: text for key, _, text in (change.partition("=") for change in changes)}
    space = {key: drawn for key, text in texts.items() if (drawn := _distribution(key, text))}
    fixed = [change for change in changes if change.partition("=")[0] not in space]
    if not space:
        raise CaptionerError("nothing to search: give a key a range, key=low..high, or a choice, key=a,b")
    ends = [
        f"{key}={end}" for key in space for end in re.split(r"(?<=\d)\.\.(?=[-\d])|,", texts[key].removesuffix(":log"))
    ]
    config, *_ = [_config(recipe, [*fixed, end], output) for end in ends]  # mistakes show before anything is trained

    output.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(output / "study.jsonl")))
    study = optuna.create_study(study_name="sweep", storage=storage, direction="maximize", load_if_exists=True)
    searched = [str(recipe), *sorted(changes)]
    if study.user_attrs.get("searched", searched) != searched:
        raise CaptionerError(f"{output} holds the sweep {shlex.join(study.user_attrs['searched'])}: set --output")
    study.set_user_attr("searched", searched)
    study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(study.trials))  # going on repeats no draw

    while len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))) < trials:
        trial = study.ask(space)
        overrides, folder = _overrides(trial.params), output / f"{trial.number:03}"
        try:
            train(_config(recipe, fixed + overrides, folder))
        except CaptionerError as error:
            study.tell(trial, state=TrialState.PRUNED)
            print(f"{folder}: {error}", file=sys.stderr)
        else:
            score = json.loads((folder / "last" / "progress.json").read_text())["progress"]["best"]
            study.tell(trial, score)
            print(f"{folder}: {config.validation.metric} {score:.4f} with {shlex.join(overrides)}", file=sys.stderr)
    if not study.get_trials(states=(TrialState.COMPLETE,)):
        raise CaptionerError(f"{output}: no trial succeeded")
    return fixed + _overrides(study.best_params)


def _distribution(key: str, text: str) -> BaseDistribution | None:
    if found := RANGE.fullmatch(text):
        try:
            low, high = json.loads(f"[{found[1]}, {found[2]}]")
            kind = IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution
            return kind(low, high, log=bool(found[3]))
        except ValueError as error:
            raise CaptionerError(f"{key}={text}: {error}") from error
    listed = "," in text and text[0] not in "[{\"'"  # these begin a value of YAML whose commas are its own
    return CategoricalDistribution(text.split(",")) if listed else None


def _overrides(values: Mapping[str, Any]) -> list[str]:
    """`key=value` for each, floats rounded as they are both trained with and printed."""
    return [f"{key}={value:.3e}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()]


def _config(recipe: Path, overrides: list[str], folder: Path) -> RunConfig:
    return load_config(recipe, [*overrides, f"output_dir={json.dumps(str(folder))}"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("changes", nargs="+", metavar="KEY=VALUES")
    parser.add_argument("--trials", type=int, default=20, help="in all, those of an earlier start included")
    parser.add_argument("--output", type=Path, default=Path("runs/sweep"), help="default: runs/sweep")
    given = parser.parse_intermixed_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    transformers.logging.disable_progress_bar()
    try:
        print(shlex.join([str(given.recipe), *sweep(given.recipe, given.changes, given.trials, given.output)]))
    except CaptionerError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
