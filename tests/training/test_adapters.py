"""Adapters learn while the weights rest, resume to the bit, merge to the same logits and are PEFT's own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from captioner.config import AdaptersConfig, RunConfig
from captioner.errors import CaptionerError
from captioner.hub.adapters import ADAPTER, merge_adapter
from captioner.hub.load import load_model
from captioner.training.adapters import add_adapters
from captioner.training.trainer import Trainer, train

Recipe = Callable[..., RunConfig]
PIXELS = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
TOKENS = torch.tensor([[1, 5, 6, 7]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """A trained model for the adapters."""
    from captioner.config import load_config

    folder = tmp_path_factory.mktemp("base")
    root = Path(__file__).parents[2]
    data = [f"data.train.path={shapes}", f"data.validation.path={shapes}", "validation.max_images=8"]
    return train(load_config(root / "configs" / "tiny.yaml", [*data, f"output_dir={folder}", "phases.0.epochs=2"]))


@pytest.fixture
def adapting(recipe: Recipe, base: Path) -> Recipe:
    """The tiny recipe, training adapters on the base."""

    def load(*overrides: str) -> RunConfig:
        given = recipe("phases.0.learning_rates={adapters: 0.01}", "adapters.parts=[trunk, decoder]", *overrides)
        values = given.model_dump(exclude_unset=True) | {"pretrained": str(base)}
        return RunConfig.model_validate({name: values[name] for name in values.keys() - {"model", "tokenizer"}})

    return load


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(pixel_values=PIXELS, decoder_input_ids=TOKENS).logits


def test_the_adapter_learns_and_merged_or_not_gives_the_same_logits(adapting: Recipe, base: Path) -> None:
    trainer = Trainer(adapting(), resume=False)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items() if ".lora_" not in name}
    best = trainer.run()
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()), "the weights rest"
    trained = logits(load_model(best, "best")[0])
    assert (trained - logits(load_model(base, "base")[0])).abs().max() > 0.1
    model, _ = load_model(base, "base")
    merge_adapter(model, best)
    torch.testing.assert_close(logits(model), trained, rtol=0, atol=1e-5)
    peft = PeftModel.from_pretrained(load_model(base, "base")[0], str(best / ADAPTER))
    torch.testing.assert_close(logits(peft), trained, rtol=0, atol=1e-5)


def test_a_stopped_training_resumes_to_the_same_bits(
    adapting: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = adapting("optimization.ema_decay=0.9", "phases.0.dropout=0.1")
    whole, stopped = (config.model_copy(update={"output_dir": str(tmp_path / name)}) for name in ("whole", "stopped"))
    train(whole)
    save, saved = Trainer._save_last, []

    def save_and_stop(trainer: Trainer) -> None:
        save(trainer)
        saved.append(trainer.progress.step)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_last", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            Trainer(stopped, resume=False).run()
    assert saved[-1] > 0, "in the middle of an epoch"
    Trainer(stopped, resume=True).run()
    for file in ("best/model.safetensors", "last/model.safetensors", f"last/{ADAPTER}/adapter_model.safetensors"):
        expected, found = (load_file(tmp_path / name / file) for name in ("whole", "stopped"))
        assert expected.keys() == found.keys()
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items()), file
    with pytest.raises(CaptionerError, match=r"adapters\.rank was 8, now 4"):
        rank = stopped.adapters.model_copy(update={"rank": 4})
        Trainer(stopped.model_copy(update={"adapters": rank}), resume=True)


def test_fused_projections_get_the_rank_for_each_of_theirs(tiny_captioner: Path) -> None:
    model, _ = load_model(tiny_captioner, "tiny")
    expected = logits(model)
    add_adapters(model, AdaptersConfig(parts=["trunk", "decoder"], rank=4, alpha=8), print)
    assert torch.equal(logits(model), expected), "an untrained adapter changes nothing"
    layer = model.decoder.layers[0]
    trunk = model.encoder.trunk.model.blocks[0].attn.qkv
    adapted = (layer.self_attn.qkv_proj, layer.cross_attn.kv_proj, layer.self_attn.out_proj, trunk)
    assert [each.lora_A["default"].out_features for each in adapted] == [12, 8, 4, 12]
    assert {each.scaling["default"] for each in adapted} == {2.0}


def test_a_part_without_linear_layers_is_named(tiny_captioner: Path) -> None:
    model, _ = load_model(tiny_captioner, "tiny")
    with pytest.raises(CaptionerError, match="the bridge of this model has no linear layer"):
        add_adapters(model, AdaptersConfig(parts=["decoder", "bridge"]), print)


def test_layers_that_no_adapter_reaches_are_told(tiny_captioner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As BEiT's in timm, which passes the weight of its fused projection to F.linear."""
    model, _ = load_model(tiny_captioner, "tiny")
    attention = model.encoder.trunk.model.blocks[0].attn
    fused = attention.qkv
    attention.qkv = torch.nn.Linear(32, 96)
    monkeypatch.setattr(type(attention), "forward", lambda self, x, **_: x + fused.weight.mean())
    said: list[str] = []
    add_adapters(model, AdaptersConfig(parts=["trunk"]), said.append)
    assert "encoder.trunk.model.blocks.0.attn.qkv" in said[0]
    assert not hasattr(attention.qkv, "lora_A")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["phases.0.learning_rates={adapters: 0.1}"], "need each other"),
        (["adapters.rank=4"], "need each other"),
        (["phases.0.learning_rates={adapters: 0.1}", "adapters.parts=[heads]"], "adapters.parts"),
        (["phases.0.learning_rates={adapters: 0.1}", "adapters.rank=0"], "adapters.rank"),
    ],
)
def test_adapters_that_make_no_sense_are_refused(recipe: Recipe, overrides: list[str], message: str) -> None:
    with pytest.raises(CaptionerError, match=message):
        recipe(*overrides)
