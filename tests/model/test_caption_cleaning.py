"""Captions are cleaned alike wherever they are tokenized."""

from captioner.model.caption_cleaning import clean_caption


def test_captions_lose_white_space_and_a_final_full_stop_alone() -> None:
    assert clean_caption(" A  dog\truns .\n") == "A dog runs"
    assert clean_caption("一只狗。") == "一只狗"
    assert clean_caption("No. 5 is ahead!") == "No. 5 is ahead!"
