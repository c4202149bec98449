"""The tokenizer is trained on captions of any script, loses nothing of them, and refuses what cannot be trained."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from captioner import CaptionerTokenizer
from captioner.cli import main
from captioner.config import TokenizerConfig
from captioner.data.captions import encode_texts
from captioner.data.tokenizer_training import train_tokenizer
from captioner.errors import CaptionerError

CAPTIONS = {
    "english": ["a red dog runs on the grass", "two men sit on a bench", "a girl reads, alone"],
    "chinese": ["一只红色的狗在草地上奔跑", "两个男人坐在长椅上", "一个女孩独自看书"],
    "arabic": ["كلب أحمر يركض على العشب", "رجلان يجلسان على مقعد", "فتاة تقرأ وحدها"],
}


def trained(captions: list[str], folder: Path, **settings: object) -> CaptionerTokenizer:
    path = folder / "tokenizer.model"
    train_tokenizer(captions, TokenizerConfig(**{"vocab_size": 400, **settings}), path)
    assert [file.name for file in folder.iterdir()] == ["tokenizer.model"]
    return CaptionerTokenizer(str(path))


def decoded(tokenizer: CaptionerTokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char", "word"])
@pytest.mark.parametrize("captions", CAPTIONS.values(), ids=CAPTIONS.keys())
def test_captions_of_any_script_come_back(captions: list[str], model_type: str, tmp_path: Path) -> None:
    tokenizer = trained(captions, tmp_path, model_type=model_type)
    ids = tokenizer(captions).input_ids
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == captions
    assert all(tokenizer.unk_token_id not in caption for caption in ids)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_characters_never_seen_survive_as_bytes(model_type: str, tmp_path: Path) -> None:
    tokenizer = trained(CAPTIONS["english"], tmp_path, model_type=model_type)
    text = "a 狗 يركض in zürich 🐕"
    assert decoded(tokenizer, text) == text
    assert tokenizer.unk_token_id not in tokenizer(text).input_ids


def test_a_frequent_word_is_one_token_though_it_begins_no_other(tmp_path: Path) -> None:
    things = ["dog", "dogs", "boy", "boys", "bank", "band", "bats", "rats", "sand", "hand"]
    captions = [f"a {one} and a {other}" for one in things for other in things]
    tokenizer = trained(captions, tmp_path, vocab_size=320)
    assert len(tokenizer("and").input_ids) == 2  # and the end of sequence


def test_special_tokens_have_the_ids_that_the_model_counts_on(tmp_path: Path) -> None:
    tokenizer = trained(CAPTIONS["english"], tmp_path)
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert special == (0, 1, 2, 3)
    assert len(tokenizer) == tokenizer.vocab_size <= 400
    ids = tokenizer("a red dog").input_ids
    assert ids[-1] == 2 and ids.count(2) == 1 and not {0, 1, 3} & set(ids)
    batch = tokenizer(["a red dog on a bench", "a"], padding=True)
    assert len(batch.input_ids[0]) == len(batch.input_ids[1])
    assert [bool(token) for token in batch.input_ids[1]] == [bool(seen) for seen in batch.attention_mask[1]]


SPELL_SPECIAL_TOKENS = ["a sign that says </s> now", "</s>", "<s> a dog", "a<pad>dog", "<unk>", "</s></s>", "a </S>"]


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char", "word"])
@pytest.mark.parametrize("are_known", [True, False], ids=["learnt", "new"])
def test_text_that_spells_a_special_token_stays_text(model_type: str, are_known: bool, tmp_path: Path) -> None:
    """Also where the model knows none of the characters, which SentencePiece gives back in one piece."""
    captions = ["my dog", *(SPELL_SPECIAL_TOKENS if are_known else [])] * 9
    tokenizer = trained(captions, tmp_path, model_type=model_type)
    encoded = encode_texts(tokenizer, SPELL_SPECIAL_TOKENS)
    assert tokenizer(SPELL_SPECIAL_TOKENS).input_ids == [[*ids, tokenizer.eos_token_id] for ids in encoded]
    for text, ids in zip(SPELL_SPECIAL_TOKENS, encoded, strict=True):
        assert not {0, 1, 2} & set(ids)
        if model_type in ("unigram", "bpe"):
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == text.lower()


def test_a_tokenizer_saved_before_stays_safe(tmp_path: Path) -> None:
    """Folders that older versions wrote do not say that special tokens are split."""
    trained(CAPTIONS["english"], tmp_path).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings.pop("split_special_tokens")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert CaptionerTokenizer.from_pretrained(tmp_path)("</s> </s>").input_ids.count(2) == 1


def test_ordinary_captions_have_the_ids_that_sentencepiece_gives(tmp_path: Path) -> None:
    tokenizer = trained(CAPTIONS["english"], tmp_path)
    texts = [*CAPTIONS["english"], "Zürich 🐕", "", "  two   dogs  "]
    assert encode_texts(tokenizer, texts) == tokenizer.sp_model.encode(texts)
    assert encode_texts(tokenizer, []) == []


@pytest.mark.parametrize(("lowercase", "expected"), [(True, "a red dog"), (False, "A Red Dog")])
def test_case_is_folded_only_where_asked(lowercase: bool, expected: str, tmp_path: Path) -> None:
    tokenizer = trained(["A Red Dog", "a red dog"], tmp_path, lowercase=lowercase)
    assert decoded(tokenizer, "A Red Dog") == expected


def test_a_reloaded_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    (tmp_path / "trained").mkdir()
    tokenizer = trained(CAPTIONS["chinese"] + CAPTIONS["english"], tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = CaptionerTokenizer.from_pretrained(tmp_path / "saved")
    texts = [*CAPTIONS["chinese"], *CAPTIONS["english"], "Zürich 🐕"]
    assert loaded(texts).input_ids == tokenizer(texts).input_ids


def test_the_same_captions_give_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train_tokenizer(CAPTIONS["english"], TokenizerConfig(vocab_size=400), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_tokenizer_that_cannot_be_trained_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match="no captions to learn from"):
        train_tokenizer(["", " . "], TokenizerConfig(), tmp_path / "tokenizer.model")
    with pytest.raises(
        CaptionerError, match=r"a vocabulary of 100 pieces cannot be trained: .*smaller than required.* 100 vs 2\d\d"
    ) as caught:
        train_tokenizer(CAPTIONS["chinese"], TokenizerConfig(vocab_size=100), tmp_path / "tokenizer.model")
    assert "INTERNAL" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="vocab_size"):
        TokenizerConfig(vocab_size=10**9)  # SentencePiece would set the memory aside
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, caption in enumerate(CAPTIONS["english"]):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["captioner", "tokenizer", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_the_command_writes_the_model(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, photos, tmp_path / "out", "--vocab-size", 400, "--no-lowercase") == 0
    tokenizer = CaptionerTokenizer(str(tmp_path / "out" / "tokenizer.model"))
    assert decoded(tokenizer, "A girl") == "A girl"


@pytest.mark.parametrize("option", [("--vocab-size", 10**9), ("--model-type", "letters")])
def test_the_command_refuses_wrong_settings_in_one_line(
    option: tuple[object, ...], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run(monkeypatch, photos, tmp_path / "out", *option) == 2
    assert str(option[1]) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [("a.txt/tokenizer", "a.txt/tokenizer/tokenizer.model: cannot be written: Not a directory"), (".", "a folder")],
)
def test_a_place_where_no_tokenizer_can_be_written_is_refused_before_captions_are_read(tmp_path, place, message):
    (tmp_path / "a.txt").touch()
    (tmp_path / "tokenizer.model").mkdir()
    with pytest.raises(CaptionerError, match=message):
        train_tokenizer(
            iter(lambda: pytest.fail("read"), None), TokenizerConfig(), tmp_path / place / "tokenizer.model"
        )
