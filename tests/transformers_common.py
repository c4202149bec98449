"""transformers' common tests of models, image processors, processors and tokenizers, run on ours: `make peer-tests`.

TRANSFORMERS_SOURCE is the unpacked source distribution of the installed transformers. It has the tests that all models
share, but lacks some modules of the repository that they import; stubs replace those.
"""

import importlib
import os
import sys
import tempfile
import types
import unittest
from pathlib import Path
from typing import Any

import torch
import transformers.utils

from captioner.config import TokenizerConfig
from captioner.data.tokenizer_training import train_tokenizer
from captioner.model.auto import (
    CaptionerConfig,
    CaptionerForConditionalGeneration,
    CaptionerImageProcessor,
    CaptionerProcessor,
    CaptionerTokenizer,
)

TESTS = Path(os.environ["TRANSFORMERS_SOURCE"]) / "tests"
PACKAGE = "transformers_tests"


def stub(name: str, **content: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module


stub(PACKAGE, __path__=[str(TESTS)])
stub(f"{PACKAGE}.exporters", __path__=[])
stub(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
stub(f"{PACKAGE}.generation", __path__=[])
stub(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
stub(f"{PACKAGE}.utils", __path__=[])
stub(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs={})
stub("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)
transformers.utils.direct_transformers_import = lambda path: transformers
(TESTS / "fixtures").mkdir(exist_ok=True)
(TESTS / "fixtures" / "sample_text.txt").write_text("A dog runs over the grass.\n\nTwo men play the guitar.\n")

modeling = importlib.import_module(f"{PACKAGE}.test_modeling_common")
configuration = importlib.import_module(f"{PACKAGE}.test_configuration_common")
image_processing = importlib.import_module(f"{PACKAGE}.test_image_processing_common")
processing = importlib.import_module(f"{PACKAGE}.test_processing_common")
tokenization = importlib.import_module(f"{PACKAGE}.test_tokenization_common")


def exclude(reasons: dict[str, str]) -> Any:
    """Skip these tests of a class."""

    def decorate(cls: type) -> type:
        for name, reason in reasons.items():
            assert hasattr(cls, name), f"transformers has no {name}"
            setattr(cls, name, unittest.skip(reason)(lambda self: None))
        return cls

    return decorate


class ModelTester:
    """A tiny hybrid, and inputs for it."""

    is_training = True
    batch_size = 3
    seq_length = 5
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 2

    def get_config(self) -> CaptionerConfig:
        return CaptionerConfig(
            encoder_name="vit_tiny_patch16_224",
            encoder_kwargs={"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "class_token": False,
                            "global_pool": "avg"},
            image_size=16,
            encoder_layers=2,
            vocab_size=99,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            max_position_embeddings=20,
            dropout=0.0,
        )  # fmt: skip

    encoder_seq_length = 4
    decoder_seq_length = seq_length

    def prepare_config_and_inputs_for_common(self) -> tuple[CaptionerConfig, dict[str, Any]]:
        inputs = {
            "pixel_values": torch.rand(self.batch_size, 3, 16, 16),
            "decoder_input_ids": torch.randint(3, 99, (self.batch_size, self.seq_length)),
            "decoder_attention_mask": torch.ones(self.batch_size, self.seq_length, dtype=torch.long),
        }
        return self.get_config(), inputs


@exclude(
    {
        "test_bc_cache_name_forward": "forward refuses former names of arguments instead of translating them",
        "test_generation_tester_mixin_inheritance": "the source distribution has no tests of generate; ours have",
        "test_model_base_model_prefix": "there is no base model without a head",
        "test_resize_embeddings_untied": "it changes input_ids; ours are decoder_input_ids",
        "test_resize_tokens_embeddings": "it changes input_ids; ours are decoder_input_ids",
    }
)
class ModelTest(modeling.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (CaptionerForConditionalGeneration,)
    is_encoder_decoder = True

    def setUp(self) -> None:
        self.model_tester = ModelTester()
        self.config_tester = configuration.ConfigTester(
            self, config_class=CaptionerConfig, hidden_size=36, num_attention_heads=4, encoder_layers=1
        )

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict: dict[str, Any], model_class: type, return_labels: bool = False) -> Any:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels:
            inputs["labels"] = torch.full((self.model_tester.batch_size, self.model_tester.seq_length), 5)
        return inputs


class ImageProcessingTester(image_processing.ImageProcessingTester):
    def __init__(self, parent: Any) -> None:
        settings = {"size": {"height": 18, "width": 18}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}
        super().__init__(parent, do_resize=True, do_normalize=True, do_convert_rgb=True, **settings)

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"pil": CaptionerImageProcessor}


@exclude(
    {
        "test_new_models_require_torchvision_backend": "Pillow resizes, to give the pixels that models were trained on",
    }
)
class ImageProcessingTest(image_processing.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ImageProcessingTester
    test_cast_dtype = True


def tokenizer(folder: str) -> CaptionerTokenizer:
    """A tokenizer of the captions' kind."""
    path = Path(folder) / "tokenizer.model"
    lines = ["a dog runs over the grass", "two men play the guitar", "This is a test", "lower newer"]
    train_tokenizer(lines, TokenizerConfig(vocab_size=300, lowercase=False, model_type="bpe"), path)
    return CaptionerTokenizer(str(path))


LOADED_KNOWS_ITS_CODE = "we save the code beside the processor, so the loaded one has an auto_map as well"


@exclude(
    {
        "test_processor_from_and_save_pretrained": LOADED_KNOWS_ITS_CODE,
        "test_processor_from_and_save_pretrained_as_nested_dict": LOADED_KNOWS_ITS_CODE,
    }
)
class ProcessorTest(processing.ProcessorTesterMixin, unittest.TestCase):
    processor_class = CaptionerProcessor

    @classmethod
    def _setup_tokenizer(cls) -> CaptionerTokenizer:
        return tokenizer(tempfile.mkdtemp(dir=cls.tmpdirname))

    @classmethod
    def _setup_image_processor(cls) -> CaptionerImageProcessor:
        return CaptionerImageProcessor(size={"height": 18, "width": 18})


@exclude({"test_tokenize_special_tokens": "a caption that spells a special token is text"})
class TokenizerTest(tokenization.TokenizerTesterMixin, unittest.TestCase):
    tokenizer_class = CaptionerTokenizer
    test_sentencepiece = True
    test_rust_tokenizer = False

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        tokenizer(tempfile.mkdtemp(dir=cls.tmpdirname)).save_pretrained(cls.tmpdirname)

    @classmethod
    def get_tokenizer(cls, pretrained_name: str | None = None, **kwargs: Any) -> CaptionerTokenizer:
        return CaptionerTokenizer.from_pretrained(pretrained_name or cls.tmpdirname, **kwargs)
