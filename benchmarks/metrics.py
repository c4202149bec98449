"""Time captioner.metrics and the official scorer on the same files in one run, and print one JSON line.

    CAPTIONER_COCO=folder python benchmarks/metrics.py

The folder holds results.json and references.json in COCO's layouts. Both sides read the files, tokenise, and compute
BLEU, ROUGE-L and CIDEr, on one core; the best of three rounds counts. Needs Java and the development dependency
pycocoevalcap.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

from captioner.metrics import CiderDReward, ptb, score_captions, tokenize  # noqa: E402
from captioner.metrics.files import read_captions, read_results  # noqa: E402

ROUNDS = 3
REWARD_BATCH = 100


def ours(folder: Path) -> dict[str, float]:
    ptb._lex_plain.cache_clear()  # each round meets its words for the first time
    return score_captions(read_results(folder / "results.json"), read_captions(folder / "references.json")).corpus


def official(folder: Path) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    references: dict[int, list[dict[str, str]]] = {}
    for annotation in json.loads((folder / "references.json").read_text())["annotations"]:
        references.setdefault(annotation["image_id"], []).append(annotation)
    results = {result["image_id"]: [result] for result in json.loads((folder / "results.json").read_text())}
    tokenizer = PTBTokenizer()
    truth, captions = (
        tokenizer.tokenize(references),
        tokenizer.tokenize({image: results[image] for image in references}),
    )
    bleu, _ = Bleu(4).compute_score(truth, captions, verbose=0)
    rouge, _ = Rouge().compute_score(truth, captions)
    cider, _ = Cider().compute_score(truth, captions)
    return {**{f"Bleu_{n}": score for n, score in enumerate(bleu, 1)}, "ROUGE_L": rouge, "CIDEr": cider}


def rewards_per_second(folder: Path) -> float:
    references = read_captions(folder / "references.json")
    results = read_results(folder / "results.json")
    reward = CiderDReward({image: tokenize(captions) for image, captions in references.items()})
    images, captions = list(results), tokenize(results.values())

    def score_all() -> None:
        for start in range(0, len(images), REWARD_BATCH):
            reward(images[start : start + REWARD_BATCH], captions[start : start + REWARD_BATCH])

    return len(images) / _seconds(score_all, time.process_time)  # of one core, whoever else uses it


def _seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    times = []
    for _ in range(ROUNDS):
        start = clock()
        work()
        times.append(clock() - start)
    return min(times)


def main() -> None:
    folder = os.environ.get("CAPTIONER_COCO")
    if not folder or shutil.which("java") is None:
        sys.exit("needs Java, and CAPTIONER_COCO: a folder with results.json and references.json")
    path = Path(folder)
    scores, peer_scores = ours(path), official(path)
    seconds, peer_seconds = _seconds(lambda: ours(path)), _seconds(lambda: official(path))
    report = {
        "benchmark": "caption metrics",
        "peer": "pycocoevalcap 1.2",
        "seconds": round(seconds, 3),
        "peer_seconds": round(peer_seconds, 3),
        "times_faster": round(peer_seconds / seconds, 1),
        "largest_difference": max(abs(scores[name] - peer_scores[name]) for name in scores),
        "cider_d_rewards_per_second": round(rewards_per_second(path)),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
