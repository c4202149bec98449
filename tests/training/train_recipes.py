"""Trainings one after another on the same processes, as torchrun starts them for test_trainer.py: RECIPE..."""

import sys

from accelerate import Accelerator

from captioner.config import load_config
from captioner.training.trainer import train


def main(*recipes: str) -> None:
    end_training = Accelerator.end_training
    Accelerator.end_training = Accelerator.wait_for_everyone  # the processes stay together for the next training
    for recipe in recipes:
        train(load_config(recipe))
    end_training(Accelerator())


if __name__ == "__main__":
    main(*sys.argv[1:])
