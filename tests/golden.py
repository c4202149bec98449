"""Writes what a refactoring has to leave as it is, to be compared before and after by `diff`:

    CAPTIONER_FLICKR8K=folder OMP_NUM_THREADS=1 PYTHONPATH=. python tests/golden.py OUT.json

The bundled model's tokens in every search over 200 photos, the scores of `evaluate` on 100 photos, ten steps' losses of
every objective and the digest of the weights after them. All of it is exact: compare on one machine.
"""

import hashlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from captioner import Captioner
from captioner.config import load_config

ROOT = Path(__file__).parents[1]
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "constrained": {"num_beams": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 8, "length_penalty": 0.5},
    "prefix, banned": {"num_beams": 2, "prefix": "a photo of", "banned_words": ["man", "dog"]},
    "draws": {"do_sample": True, "top_k": 20, "top_p": 0.9, "seed": 3, "num_return_sequences": 2},
    "diverse": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "num_return_sequences": 4},
    "forced": {"num_beams": 3, "forced_words": ["red"]},
}
OBJECTIVES = {
    "captioning": "{captioning: 1.0}",
    "reward": "{captioning: 0.5, reward: 1.0}",
    "tags": "{captioning: 1.0, tags: 1.0}",
    "contrastive": "{captioning: 1.0, contrastive: 1.0}",
    "distillation": "{captioning: 1.0, distillation: 0.5}",
}


def tokens(photos: list[Path]) -> dict[str, Any]:
    captioner = Captioner.from_pretrained(device="cpu", dtype="fp32", backend="torch")
    found = {}
    for name, options in SEARCHES.items():
        captions = captioner(photos, **options)
        found[name] = [
            [[[token.text for token in one.tokens], one.confidence] for one in (caption, *caption.alternatives)]
            for caption in captions
        ]
    return found


def scores(data: Path, folder: Path) -> Any:
    tree = json.loads((data / "dataset_flickr8k.json").read_text(encoding="utf-8"))
    tree["images"] = [image for image in tree["images"] if image["split"] == "val"][:100]
    (folder / "some.json").write_text(json.dumps(tree), encoding="utf-8")
    command = [
        sys.executable,
        "-c",
        "from captioner.cli import main; main()",
        "evaluate",
        "--data",
        folder / "some.json",
    ]
    command += ["--images", data / "images", "--split", "val", "--device", "cpu", "-o", folder / "scores.json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "scores.json").read_text(encoding="utf-8"))


def losses(folder: Path) -> dict[str, Any]:
    sys.argv = ["draw_shapes.py", str(folder / "shapes"), "--images", "200"]
    runpy.run_path(str(ROOT / "examples" / "draw_shapes.py"), run_name="__main__")
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), folder / "teacher.safetensors")
    (folder / "words.txt").write_text("a red square above a blue circle\na green circle\n" * 80, encoding="utf-8")
    all_parts = "trunk: 0.001, bridge: 0.001, decoder: 0.001"
    phases = {name: (all_parts, objectives) for name, objectives in OBJECTIVES.items()}
    phases |= {"frozen": ("bridge: 0.001, decoder: 0.001", "{captioning: 1.0}")}
    phases |= {"language_modeling": ("decoder: 0.001", "{language_modeling: 1.0}")}
    found = {}
    for name, (rates, objectives) in phases.items():
        run = folder / name
        heads = ", heads: 0.001" if name in ("tags", "contrastive", "distillation") else ""
        data = f"{{path: {folder / 'shapes' / 'captions.csv'}, split: "
        recipe = load_config(
            ROOT / "configs" / "tiny.yaml",
            [
                f"output_dir={run}",
                f"data.train={data}train}}",
                f"data.validation={data}val}}",
                f"data.text={folder / 'words.txt'}",
                f"teacher={{name: test_efficientnet, weights: {folder / 'teacher.safetensors'}}}",
                "tags={source: captions, num_words: 8}",
                "optimization.ema_decay=0.9",
                "model.dropout=0.1",
                "validation.max_images=8",
                f"phases=[{{name: only, steps: 10, learning_rates: {{{rates}{heads}}}, objectives: {objectives}}}]",
            ],
        )
        from captioner.training.trainer import train

        best = train(recipe)
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        steps = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        digest = hashlib.sha256((best / "model.safetensors").read_bytes()).hexdigest()
        found[name] = {"log": steps, "weights": digest}
    return found


def main() -> None:
    torch.set_num_threads(1)
    data, out = Path(os.environ["CAPTIONER_FLICKR8K"]), Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "losses": losses(Path(folder)),
            "scores": scores(data, Path(folder)),
            "tokens": tokens(sorted((data / "images").glob("*.jpg"))[:200]),
        }
    out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
