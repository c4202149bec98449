import base64
import http.server
import io
import json
import math
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from captioner.data.images import ImageError
from captioner.decoding.hypothesis import Hypothesis
from captioner.decoding.options import GenerationOptions
from captioner.decoding.stream import GenerationStream
from captioner.errors import CaptionerError
from captioner.hub.find import digest
from captioner.infer import torch_backend as module
from captioner.infer.caption import Caption, CaptionMaker
from captioner.infer.captioner import Captioner
from captioner.infer.inputs import image_batches


@pytest.fixture(scope="module")
def cap(tiny_captioner: Path) -> Captioner:
    return Captioner.from_pretrained(tiny_captioner, device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{number}.png" for number in range(5)]
    generator = torch.Generator().manual_seed(0)
    for number, path in enumerate(paths):
        pixels = torch.randint(0, 256, (40 + number, 60, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    return paths


def test_one_image_gives_one_caption_and_a_list_a_list(cap, photos):
    one = cap(photos[0])
    assert isinstance(one, Caption) and one.text and one.alternatives == () and one.tags == ()
    assert cap([photos[0]])[0].text == one.text
    assert cap([]) == []


def test_threads_wait_briefly_while_a_captioner_computes_and_no_longer(cap, photos, monkeypatch):
    blocks = []

    @contextmanager
    def recorded():
        blocks.append("entered")
        yield
        blocks.append("left")

    monkeypatch.setattr(module, "brief_waits", recorded)
    assert cap(photos[0]).text and blocks == ["entered", "left"] * 2, "a batch, and what is left at the end"


def test_path_bytes_and_pillow_image_are_the_same_image(cap, photos):
    expected = cap(photos[0])
    assert cap(str(photos[0])) == cap(photos[0].read_bytes()) == cap(Image.open(photos[0])) == expected


def test_every_form_of_an_image_is_one_image(cap, photos):
    expected = cap(photos[0])
    pixels = np.asarray(Image.open(photos[0]))
    tensor = torch.tensor(pixels).permute(2, 0, 1)
    data = photos[0].read_bytes()
    for image in (bytearray(data), memoryview(data), io.BytesIO(data), pixels, tensor, tensor / 255):
        assert cap(image) == expected, type(image)
    with open(photos[0], "rb") as file:
        assert cap(file) == expected
        assert cap(file) == expected, "read from its start again"


def test_every_iterable_of_images_gives_a_list(cap, photos):
    expected = [caption.text for caption in cap(photos)]
    opened = [Image.open(photo) for photo in photos]
    mixed = [str(photos[0]), photos[1], photos[2].read_bytes(), opened[3], np.asarray(opened[4])]
    iterables = [tuple(photos), iter(photos), (photo for photo in photos), dict.fromkeys(photos).keys(), mixed]
    for images in [*iterables, np.array([str(photo) for photo in photos])]:
        assert [caption.text for caption in cap(images, batch_size=2)] == expected, type(images)
    batch = np.stack([np.asarray(image.resize((32, 32))) for image in opened])
    alone = [cap(pixels).text for pixels in batch]
    for images in (batch, torch.tensor(batch).permute(0, 3, 1, 2)):
        assert [caption.text for caption in cap(images)] == alone
    assert cap(photo for photo in ()) == []


def test_a_generator_is_taken_a_batch_at_a_time(cap, photos, tmp_path):
    taken = []

    def images():
        for number, image in enumerate([photos[0], tmp_path / "none.png", *photos]):
            taken.append(number)
            yield image

    with pytest.raises(ImageError, match="no such file"):
        cap(images(), batch_size=1)
    assert taken == [0, 1]


@pytest.mark.parametrize("images", [None, 7, {"photo.jpg": 1}])
def test_what_is_no_image_is_refused_by_its_type(cap, images):
    with pytest.raises(CaptionerError, match=f"{type(images).__name__} is not an image: give a path, bytes"):
        cap(images)


def test_a_broken_image_in_memory_is_named_by_its_place(cap, photos):
    for broken, reason in ((b"no photo", "not an image"), (np.zeros((2, 2, 2)), "shape"), (7, "int is not")):
        with pytest.raises(ImageError, match=rf"^images\[1\], .*{reason}"):
            cap([photos[0], broken, photos[1]], batch_size=3)
    with pytest.raises(ImageError, match=r"^https://example.org/a.jpg: is a URL, and URLs are not fetched"):
        cap([photos[0], "https://example.org/a.jpg"])


def test_a_jpeg_without_end_marker_is_captioned_and_flagged(cap, photos, tmp_path, caplog):
    Image.open(photos[0]).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "unended.jpg").write_bytes(data[:-2])
    assert cap(tmp_path / "unended.jpg") == cap(tmp_path / "whole.jpg")
    assert caplog.messages == [f"{tmp_path / 'unended.jpg'}: the JPEG has no end marker, but the picture is whole"]


@pytest.mark.parametrize("options", [{"num_beams": 1}, {}, {"do_sample": True, "seed": 3}])
def test_batches_change_no_caption_and_no_order(cap, photos, options):
    alone = [cap(photo, **options) for photo in photos]
    for batch_size in (2, 16):
        together = cap(photos, batch_size=batch_size, **options)
        assert [caption.text for caption in together] == [caption.text for caption in alone]
        assert [c.confidence for c in together] == pytest.approx([c.confidence for c in alone], rel=1e-4)
    assert len({caption.text for caption in alone}) > 1, "equal captions would hide a wrong order"


def test_confidence_is_the_geometric_mean_of_token_probabilities_with_the_end(cap, photos):
    cut = cap(photos[0], max_new_tokens=3, min_new_tokens=3, num_beams=1)
    assert len(cut.tokens) == 3
    assert cut.confidence == pytest.approx(math.exp(sum(token.log_prob for token in cut.tokens) / 3))
    ids = tuple(cap.backend.processor.tokenizer("a red").input_ids[:-1])
    make = CaptionMaker(cap.backend.tokenizer, cap.options())
    ended = make([Hypothesis(ids, (-1.0,) * len(ids), end_log_prob=-4.0)])
    assert ended.text == "a red" and ended.confidence == pytest.approx(math.exp(-(len(ids) + 4) / (len(ids) + 1)))


def test_alternatives_are_the_further_beams(cap, photos):
    caption = cap(photos[1], num_return_sequences=3, num_beams=4)
    assert len(caption.alternatives) == 2
    assert len({caption.text, *(other.text for other in caption.alternatives)}) == 3


def test_a_prefix_starts_the_caption_and_banned_words_are_in_none(cap, photos):
    assert cap(photos[0], prefix="a red").text.startswith("a red")
    letters = cap(photos[0]).text.replace(" ", "")
    for letter in sorted(set(letters)):
        *_, token = cap.backend.tokenizer.encode(letter)  # the token before it stands for a space
        assert letter not in cap(photos[0], bad_words_ids=[[token]]).text
    spelled = map(cap.backend.tokenizer.id_to_token, cap.backend.tokenizer.encode(letters[:1]))
    caption = cap(photos[0], banned_words=[letters[:1]])
    assert "".join(spelled) not in "".join(token.text for token in caption.tokens)


def test_forced_words_are_in_every_caption(cap, photos):
    for caption in cap(photos, num_beams=4, forced_words=["red", "a dog"], batch_size=2):
        assert "red" in caption.text and "a dog" in caption.text


def test_a_broken_image_in_a_list_is_named(cap, photos, tmp_path):
    broken = tmp_path / "notes.jpg"
    broken.write_text("not a photo")
    with pytest.raises(ImageError, match=r"notes\.jpg"):
        cap([photos[0], broken])


def test_an_unknown_option_is_an_error_that_lists_the_known_ones(cap, photos):
    with pytest.raises(CaptionerError, match=r"unknown option beams; there are num_beams, max_new_tokens"):
        cap(photos[0], beams=3)


def test_a_model_of_half_precision_captions(tiny_captioner, photos):
    for precision in ("bf16", "fp16"):
        half = Captioner.from_pretrained(tiny_captioner, device="cpu", dtype=precision)
        assert {parameter.dtype for parameter in half.backend.model.parameters()} == {module.DTYPES[precision]}
        assert 0 < half(photos[0]).confidence <= 1


def test_batches_that_are_copied_while_others_are_captioned_keep_their_order(cap, photos, monkeypatch):
    """With the CPU's streams, which do nothing, in place of CUDA's."""
    expected = [caption.text for caption in cap(photos, batch_size=2)]
    for name in ("Stream", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(torch.cpu, name))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory: empty(shape, dtype=dtype))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    stream = cap.stream(GenerationOptions())
    stream.copies = module.CudaCopies(cap.backend.device, cap.backend.dtype)
    stream.generation.plan.encode = cap.backend.encode
    first, *others = image_batches(photos, cap.preprocessing, 2)
    assert stream.add(first) == [], "it is on its way"
    captions = [caption.text for batch in others for caption in stream.add(batch)]
    assert captions + [caption.text for caption in stream.finish()] == expected
    assert stream.finish() == []


def damage(folder: Path, what: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if what == "no config":
        (folder / "config.json").unlink()
    elif what == "config is no JSON":
        (folder / "config.json").write_text("{")
    elif what == "another model":
        (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    elif what == "another trunk":
        (folder / "config.json").write_text(json.dumps(config | {"encoder_name": "vit_of_nobody"}))
    elif what == "no weights":
        (folder / "model.safetensors").unlink()
    elif what == "cut weights":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    elif what == "a weight less":
        weights = load_file(folder / "model.safetensors")
        save_file(
            {k: v for k, v in weights.items() if "lm_head" not in k and "embed_tokens" not in k},
            folder / "model.safetensors",
            {"format": "pt"},
        )
    elif what == "another width":
        (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    elif what == "no tokenizer":
        (folder / "tokenizer.model").unlink()
    elif what == "damaged tokenizer":
        (folder / "tokenizer.model").write_bytes(b"\xff" * 200)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no config", "no config.json"),
        ("config is no JSON", "its config.json holds no JSON object"),
        ("another model", "a 'bert' model with code of its own, which is not run"),
        ("another trunk", "vit_of_nobody"),
        ("no weights", "model.safetensors"),
        ("cut weights", "cannot be read as a model"),
        ("a weight less", "weights missing or of another shape"),
        ("another width", r"weights missing or of another shape: decoder\.layers\.0\.mlp"),
        ("no tokenizer", "cannot be read as a model"),
        ("damaged tokenizer", "cannot be read as a model"),
    ],
)
def test_a_folder_that_is_no_model_is_explained_in_one_line(tiny_captioner, tmp_path, what, message):
    folder = tmp_path / "model"
    shutil.copytree(tiny_captioner, folder)
    damage(folder, what)
    with pytest.raises(CaptionerError, match=message) as caught:
        Captioner.from_pretrained(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_models_are_explained(tmp_path, monkeypatch):
    for name in ("runs/one/two", str(tmp_path / "nowhere"), tmp_path / "nowhere", "gone"):
        with pytest.raises(CaptionerError, match="no such folder"):
            Captioner.from_pretrained(name)
    (tmp_path / "file").touch()
    with pytest.raises(CaptionerError, match="a file; a model is a folder"):
        Captioner.from_pretrained(tmp_path / "file")
    monkeypatch.setattr("captioner.hub.find.BUNDLED", tmp_path)
    for bundled in (None, "default"):
        with pytest.raises(CaptionerError, match="no bundled model; name one"):
            Captioner.from_pretrained(bundled)


def test_a_hub_id_is_read_from_the_cache_when_offline(tiny_captioner, tmp_path, photos, cap, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CaptionerError, match="no such folder, not in the Hub's cache, and the Hub is offline"):
        Captioner.from_pretrained("someone/captioner-tiny")
    repository = tmp_path / "models--someone--captioner-tiny"
    shutil.copytree(tiny_captioner, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    from_hub = Captioner.from_pretrained("someone/captioner-tiny")
    assert from_hub.name == "someone/captioner-tiny"
    assert from_hub(photos[0]).text == cap(photos[0]).text


@pytest.mark.parametrize("device", ["nonsense", "meta"])
def test_a_device_that_cannot_compute_is_refused(tiny_captioner, device):
    with pytest.raises(CaptionerError, match=f"device '{device}'"):
        Captioner.from_pretrained(tiny_captioner, device=device)
    with pytest.raises(CaptionerError, match="precision 'int3': choose auto, fp32, bf16, fp16"):
        Captioner.from_pretrained(tiny_captioner, dtype="int3")


def test_torchs_types_and_their_names_are_precisions(tiny_captioner, photos):
    for dtype in (torch.bfloat16, "bfloat16", "bf16"):
        assert Captioner.from_pretrained(tiny_captioner, device="cpu", dtype=dtype).precision == "bf16"


def test_arguments_for_the_hub_reach_it(tmp_path, monkeypatch):
    asked = {}

    def download(repository, **arguments):
        asked.update(arguments, repository=repository)
        raise OSError("stop")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(CaptionerError, match="stop"):
        Captioner.from_pretrained("someone/model", revision="v2", token="secret", cache_dir=tmp_path)
    assert asked.pop("allow_patterns")
    given = {"repository": "someone/model", "revision": "v2", "token": "secret", "cache_dir": tmp_path}
    assert given.items() <= asked.items()


def test_a_saved_model_is_the_model_and_nothing_is_written_over(cap, tiny_captioner, photos, tmp_path):
    cap.save_pretrained(tmp_path / "saved")
    assert digest(tmp_path / "saved") == digest(tiny_captioner)
    assert Captioner.from_pretrained(str(tmp_path / "saved"), device="cpu")(photos[0]) == cap(photos[0])
    with pytest.raises(CaptionerError, match="saved: exists already"):
        cap.save_pretrained(tmp_path / "saved")


def test_a_models_files_are_pushed_to_the_hub(cap, monkeypatch):
    calls = []

    class Api:
        def __init__(self, token):
            calls.append(token)

        def create_repo(self, repo_id, private, exist_ok):
            calls.append((repo_id, private, exist_ok))
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, **arguments):
            calls.append(arguments)
            return SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert cap.push_to_hub("mine", private=True, token="secret", revision="next") == "https://hub/commit"
    token, created, uploaded = calls
    assert token == "secret" and created == ("mine", True, True)
    assert uploaded["repo_id"] == "me/mine" and uploaded["folder_path"] == cap.folder and uploaded["revision"] == "next"
    assert {"model.safetensors", "config.json", "tokenizer.model"} <= set(uploaded["allow_patterns"])

    def refuse(api, *_, **__):
        raise OSError("no\nroute")

    monkeypatch.setattr(Api, "create_repo", refuse)
    with pytest.raises(CaptionerError, match=r"^mine: not uploaded: no$"):
        cap.push_to_hub("mine")


def test_urls_are_fetched_only_if_asked_for(cap, photos, tmp_path):
    data = photos[0].read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/photo.png" else 404)
            self.end_headers()
            if self.path == "/photo.png":
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        inline = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        expected = cap(photos[0])
        assert cap(f"{url}/photo.png", fetch_urls=True) == expected
        assert [one.text for one in cap([inline, photos[1]], fetch_urls=True)] == [expected.text, cap(photos[1]).text]
        with pytest.raises(ImageError, match=r"gone\.png: cannot be fetched: HTTP status 404"):
            cap([f"{url}/gone.png"], fetch_urls=True)
        with pytest.raises(ImageError, match="URLs are not fetched"):
            cap(f"{url}/photo.png")
        server.shutdown()
    with pytest.raises(ImageError, match=r"photo\.png: cannot be fetched: .*refused"):
        cap(f"{url}/photo.png", fetch_urls=True)
    with pytest.raises(ImageError, match="only http, https and data URLs"):
        cap(f"file://{photos[0]}", fetch_urls=True)


def test_the_folder_of_a_training_means_its_best_checkpoint(tiny_captioner, tmp_path):
    shutil.copytree(tiny_captioner, tmp_path / "run" / "best")
    (tmp_path / "run" / "last").mkdir()
    assert Captioner.from_pretrained(tmp_path / "run").backend.processor.tokenizer.eos_token_id == 2


def test_small_batches_are_decoded_together_and_captions_are_those_of_large_ones(cap, photos, monkeypatch):
    images = photos * 8  # 40 images: some take the places of the first 32
    expected = [caption.text for caption in cap(images, batch_size=40)]
    decoded = []
    add = GenerationStream.add
    monkeypatch.setattr(GenerationStream, "add", lambda self, inputs: decoded.append(len(inputs)) or add(self, inputs))
    assert [caption.text for caption in cap(images, batch_size=7)] == expected
    assert decoded == [35, 5]
