"""`captioner write`: every format is read back by the program that it is for, and by our own sources for training."""

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image
from stub_captioner import StubCaptioner, update_with

from captioner import cli
from captioner.annotate.formats.xmp import EXIFTOOL_TAGS
from captioner.annotate.project import Project
from captioner.annotate.write import FORMATS
from captioner.config import SourceConfig
from captioner.data.images import load_image
from captioner.data.sources import load_samples

HOSTILE = 'it\'s "Rex", <b>&</b> the dog\u2019s, #1\\n 🐕'
LONG = "a dog that runs over a long beach beside the sea, " * 3 + "and sits down"

needs_exiftool = pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed")


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four photos: two captions of a model, one accepted, one edited by a person."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "in.side").mkdir(parents=True)
    names = ["a.jpg", "b.png", "in.side/c.d.webp", "in.side/é 4.jpg"]
    for number, name in enumerate(names):
        Image.new("RGB", (20 + number, 10), (number * 40, 90, 200)).save(tmp_path / "photos" / name)
    update_with(StubCaptioner(), "album.captions", "photos")
    with Project("album.captions") as project:
        project.decide(2, 1, "accepted", "ann")
        project.decide(3, 1, "edited", "ann", HOSTILE)
        project.decide(4, 1, "edited", "bob", LONG)
    return Path("album.captions")


CAPTIONS = {
    "photos/a.jpg": None,
    "photos/b.png": None,
    "photos/in.side/c.d.webp": HOSTILE,
    "photos/in.side/é 4.jpg": LONG,
}
"""What a person wrote; the others have the stub's captions."""


@pytest.fixture
def write(album: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Run the command; return what it says on stderr."""

    def run(*arguments: object, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["captioner", "write", str(album), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        err = capsys.readouterr().err
        assert (end.value.code or 0) == status, err
        return err

    return run


@pytest.fixture
def expected(album: Path) -> dict[str, str]:
    with Project(album) as project:
        rows = project.rows("SELECT path, caption FROM annotations ORDER BY path")
    return {row["path"]: row["caption"] for row in rows}


WRITERS = ["stub {} (model)", "stub {} (model, accepted by ann)", "ann (person)", "bob (person)"]


def writers(album: Path) -> list[str]:
    with Project(album) as project:
        version = project.captions(1)[0].writer.version
    return [line.format(version[:8]) for line in WRITERS]


def trained_on(path: object, **config: object) -> list[tuple[str, ...]]:
    """The captions that training would read, of images that decode."""
    samples, skips = load_samples(SourceConfig(path=str(path), **config))
    assert not skips
    for sample in samples:
        assert load_image(sample.image).height == 10
    return [sample.captions for sample in samples]


def as_samples(expected: dict[str, str]) -> list[tuple[str, ...]]:
    return [(caption,) for caption in expected.values()]


TRAINABLE = {
    "jsonl": ("out.jsonl", "out.jsonl", {}),
    "csv": ("out.csv", "out.csv", {}),
    "parquet": ("out.parquet", "out.parquet", {}),
    "coco": ("captions_x.json", "captions_x.json", {}),
    "coco-results": ("out.json", "out.json", {}),
    "kohya": ("meta.json", "meta.json", {}),
    "fiftyone": ("labels.json", "labels.json", {}),
    "roboflow": ("train.jsonl", "train.jsonl", {}),
    "label-studio": ("tasks.json", "tasks.json", {}),
    "imagefolder": ("out", "out", {}),
    "hf": ("out", "hf:out", {}),
    "webdataset": ("out", "out/*.tar", {}),
    "txt": ("out", None, {}),
    "caption": ("out", None, {}),
    "xmp": ("out", None, {}),
    "embedded": ("out", "out/photos", {}),
}


def test_every_format_is_tested():
    assert sorted(TRAINABLE) == sorted(FORMATS)


@pytest.mark.parametrize("name", TRAINABLE)
def test_training_reads_what_is_written(write, expected, name):
    output, path, config = TRAINABLE[name]
    if name == "embedded" and not shutil.which("exiftool"):
        pytest.skip("exiftool is not installed")
    assert write("--format", name, "-o", output).endswith("4 written, 0 left out\n")
    if path is None:  # sidecars: beside the photos
        shutil.copytree("photos", "out/photos", dirs_exist_ok=True)
        path = "out/photos"
    assert sorted(trained_on(path, **config)) == sorted(as_samples(expected))


def test_a_project_is_itself_something_to_train_on(album, expected):
    assert trained_on(album) == as_samples(expected)
    with Project(album) as project:
        project.decide(1, project.image(1).version, "rejected", "ann")
    assert len(trained_on(album)) == 3
    assert len(trained_on(album, captioned=False)) == 4


def test_images_of_archives_are_written_and_trained_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 10), (9, 90, 200)).save("a.jpg")
    with zipfile.ZipFile("z.zip", "w") as archive:
        archive.write("a.jpg", "in/a.jpg")
    update_with(StubCaptioner(), "album.captions", "z.zip")
    assert len(trained_on("album.captions")) == 1
    for name, output, status in (("imagefolder", "folder", 0), ("webdataset", "shards", 0), ("txt", None, 3)):
        arguments = ["--format", name, *(["-o", output] if output else [])]
        monkeypatch.setattr(sys, "argv", ["captioner", "write", "album.captions", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert (end.value.code or 0) == status
    assert "z.zip/in/a.jpg: is inside an archive" in capsys.readouterr().err
    assert Path("folder/z.zip/in/a.jpg").read_bytes() == Path("a.jpg").read_bytes()
    assert len(trained_on("folder")) == len(trained_on("shards/*.tar")) == 1


# Who wrote what


def test_tables_say_who_wrote_each_caption_and_what_to_doubt_in_it(write, album, expected):
    with Project(album) as project, project.transaction() as connection:
        ((suggestion,),) = project.rows("SELECT suggestion FROM images WHERE id = 1")
        connection.execute("UPDATE captions SET words = ? WHERE id = ?", ('[["colour", 0.6]]', suggestion))
        project.flag(1, "abstained", "below 0.7", suggestion)
    write("--format", "jsonl", "-o", "out.jsonl")
    records = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["image"] for record in records] == list(expected)
    assert [record["writer"] for record in records] == writers(album)
    assert [record["verified"] for record in records] == [False, True, True, True]
    assert [record["model"] for record in records] == ["stub", "stub", "", ""]
    assert [record["words"] for record in records] == [[{"word": "colour", "confidence": 0.6}], *[[]] * 3]
    assert [record["flags"].get("abstained") for record in records] == ["below 0.7", None, None, None]
    assert [record["abstained"] for record in records] == [True, False, False, False]
    write("--format", "csv", "-o", "out.csv")
    with open("out.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["caption"], row["writer"]) for row in rows] == [(r["caption"], r["writer"]) for r in records]
    assert [json.loads(row["flags"]) for row in rows] == [record["flags"] for record in records]
    write("--format", "parquet", "-o", "out.parquet")
    first = pyarrow.parquet.read_table("out.parquet").to_pylist()[0]
    assert {"flag": "abstained", "detail": "below 0.7"} in first["flags"] and first["abstained"]


def test_only_verified_captions_on_request(write, expected):
    write("--format", "jsonl", "-o", "out.jsonl", "--verified")
    assert [line.count("stub") for line in Path("out.jsonl").read_text().splitlines()] == [2, 0, 0]


def test_names_of_images_start_from_the_file_that_is_written(write):
    Path("deep/er").mkdir(parents=True)
    write("--format", "jsonl", "-o", "deep/er/out.jsonl")
    assert json.loads(Path("deep/er/out.jsonl").read_text().splitlines()[0])["image"] == "../../photos/a.jpg"
    assert len(trained_on("deep/er/out.jsonl")) == 4


# Consumers


def test_datasets_reads_parquet_imagefolder_and_what_is_saved(write, album, expected):
    datasets = pytest.importorskip("datasets")
    write("--format", "parquet", "-o", "out.parquet")
    table = datasets.load_dataset("parquet", data_files="out.parquet", split="train", cache_dir="cache")
    assert table["caption"][:] == list(expected.values()) and table["writer"][:] == writers(album)
    write("--format", "imagefolder", "-o", "folder")
    table = datasets.load_dataset("imagefolder", data_dir="folder", split="train", cache_dir="cache")
    assert sorted(table["text"]) == sorted(expected.values()) and sorted(table["writer"]) == sorted(writers(album))
    assert {image.height for image in table["image"]} == {10}
    write("--format", "hf", "-o", "saved")
    table = datasets.load_from_disk("saved")
    assert table["caption"][:] == list(expected.values()) and table["writer"][:] == writers(album)
    assert [image.width for image in table["image"]] == [20, 21, 22, 23]
    assert table[2]["verified"] is True


def test_pycocotools_reads_the_data_set_and_the_results(write, album, expected, capsys):
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    write("--format", "coco", "-o", "captions.json")
    write("--format", "coco-results", "-o", "results.json")
    data = coco.COCO("captions.json")
    results = data.loadRes("results.json")
    for read in (data, results):
        captions = [read.loadAnns(read.getAnnIds(imgIds=[image])) for image in sorted(data.getImgIds())]
        assert [[entry["caption"] for entry in entries] for entries in captions] == [[c] for c in expected.values()]
        assert [entries[0]["writer"] for entries in captions] == writers(album)
    assert [image["width"] for image in data.loadImgs(sorted(data.getImgIds()))] == [20, 21, 22, 23]


def test_our_scorer_reads_coco_results(write, monkeypatch, capsys):
    write("--format", "coco", "-o", "references.json")
    write("--format", "coco-results", "-o", "results.json")
    monkeypatch.setattr(sys, "argv", ["captioner", "score", "results.json", "references.json", "--metrics", "Bleu_4"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code, capsys.readouterr().err


def test_webdataset_reads_the_shards(write, album, expected):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    write("--format", "webdataset", "-o", "one")
    samples = list(webdataset.WebDataset("one/00000.tar", shardshuffle=False).decode("pil"))
    assert [sample["txt"] for sample in samples] == list(expected.values())
    assert [sample["json"]["writer"] for sample in samples] == writers(album)
    pictures = [next(sample[key] for key in ("jpg", "png", "webp") if key in sample) for sample in samples]
    assert [picture.width for picture in pictures] == [20, 21, 22, 23]
    assert all("." not in sample["__key__"] for sample in samples)


def test_shards_have_a_limited_size(album):
    from captioner.annotate.annotations import annotations
    from captioner.annotate.formats.tar_shards import to_webdataset

    with Project(album) as project:
        to_webdataset(annotations(project), Path("many"), pytest.fail, shard_bytes=300)
    assert sorted(os.listdir("many")) == ["00000.tar", "00001.tar", "00002.tar", "00003.tar"]
    assert len(trained_on("many/*.tar")) == 4


def test_label_studio_s_own_parser_takes_the_tasks(write, album, expected):
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    write("--format", "label-studio", "-o", "tasks.json")
    tasks = json.loads(Path("tasks.json").read_text(encoding="utf-8"))
    config = '<View><Image name="image" value="$image"/><TextArea name="caption" toName="image"/></View>'
    parser = interface.LabelInterface(config)
    for task in tasks:
        assert parser.validate_task({"data": task["data"]})
        assert all(map(parser.validate_prediction, task.get("predictions", [])))
        assert all(map(parser.validate_annotation, task.get("annotations", [])))
    results = [(task.get("annotations") or task["predictions"])[0]["result"][0] for task in tasks]
    assert [result["value"] for result in results] == [{"text": [caption]} for caption in expected.values()]
    assert {result["type"] for result in results} == {"textarea"}
    assert tasks[0]["predictions"][0]["model_version"] == writers(album)[0] and "annotations" not in tasks[0]
    assert tasks[2]["data"]["image"] == "/data/local-files/?d=photos/in.side/c.d.webp"
    assert tasks[3]["data"]["image"].isascii()


def test_fiftyone_gets_its_documented_layout(write, album, expected):
    """FiftyOneImageClassificationDataset: a label or an object with label, confidence and attributes, by the image's
    path without extension."""
    write("--format", "fiftyone", "-o", "labels.json")
    tree = json.loads(Path("labels.json").read_text(encoding="utf-8"))
    assert tree.keys() == {"classes", "labels"} and tree["classes"] is None
    labels = {os.path.splitext(name)[0]: caption for name, caption in expected.items()}
    assert {name: label["label"] for name, label in tree["labels"].items()} == labels
    assert [label["attributes"]["writer"] for label in tree["labels"].values()] == writers(album)
    assert all(label.keys() <= {"label", "confidence", "attributes"} for label in tree["labels"].values())


def test_kohya_s_rules_find_the_images_and_their_captions(write, album, expected):
    """sd-scripts: a key that is a file's path is that image; the caption is `caption`, then a comma and `tags`."""
    write("--format", "kohya", "-o", "meta.json")
    metadata = json.loads(Path("meta.json").read_text(encoding="utf-8"))
    assert all(os.path.exists(key) for key in metadata)
    assert [entry["caption"] for entry in metadata.values()] == list(expected.values())
    assert [entry["writer"] for entry in metadata.values()] == writers(album)


def test_roboflow_s_jsonl_has_its_fields(write, expected):
    write("--format", "roboflow", "-o", "photos/annotations.jsonl")
    lines = Path("photos/annotations.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    assert all(entry["prefix"] and os.path.exists(os.path.join("photos", entry["image"])) for entry in entries)
    assert [entry["suffix"] for entry in entries] == list(expected.values())


# Sidecars, and words of people in them


def test_sidecars_hold_prefix_suffix_and_tags(album, write):
    with Project(album) as project, project.transaction() as connection:
        connection.execute("""UPDATE captions SET tags = '[{"tag": "dog", "score": 0.9}]' WHERE image = 1""")
    write("--format", "caption", "--prefix", "ohwx, ", "--suffix", "!", "--tags")
    text = Path("photos/a.caption").read_text()
    assert text.startswith("ohwx, colour ") and text.endswith("!, dog\n")
    records = [json.loads(line) for line in Path("photos/captioner.provenance.jsonl").read_text().splitlines()]
    assert [(record["file"], record["writer"]) for record in records] == [
        ("a.caption", writers(album)[0]), ("b.caption", writers(album)[1])
    ]  # fmt: skip


def test_a_person_s_sidecar_is_kept_and_our_own_is_replaced(album, write, expected):
    Path("photos/b.txt").write_text("my words\n")
    said = write("--format", "txt", status=3)
    assert said == (
        f"{Path.cwd()}/photos/b.txt: holds words of a person; kept (--overwrite-human replaces them)\n"
        "3 written, 1 left out\n"
    )
    assert Path("photos/b.txt").read_text() == "my words\n"
    with Project(album) as project:
        project.decide(1, project.image(1).version, "edited", "ann", "Max")
    write("--format", "txt", status=3)
    assert Path("photos/a.txt").read_text() == "Max\n", "what the model wrote there was ours to replace"
    write("--format", "txt", "--overwrite-human")
    assert Path("photos/b.txt").read_text() == expected["photos/b.png"] + "\n"


def test_what_we_wrote_beside_photos_is_not_taken_for_a_person_s(write, album, expected):
    write("--format", "txt", "--prefix", "a photo: ")
    write("--format", "xmp")
    stub = StubCaptioner()
    assert update_with(stub, "album.captions", "photos").by_people == 3
    with Project(album) as project:
        assert [row["caption"] for row in project.rows("SELECT caption FROM annotations")] == list(expected.values())
    summary = update_with(stub, "other.captions", "photos")
    assert (summary.captioned, summary.by_people) == (1, 3), "a model's words are no person's in another project either"


# XMP


def test_xmp_sidecars_have_the_four_properties(write, album):
    write("--format", "xmp")
    from captioner.data.xmp import read_xmp

    fields = read_xmp(Path("photos/in.side/é 4.jpg.xmp").read_bytes())
    assert fields["description"] == fields["long"] == LONG and fields["writer"] == "bob (person)"
    assert len(fields["alt"]) <= 125 and fields["alt"].endswith(".")
    assert read_xmp(Path("photos/in.side/c.d.webp.xmp").read_bytes())["description"] == HOSTILE


def exiftool(*paths: object) -> list[dict[str, str]]:
    tags = [f"-{tag}" for tags in EXIFTOOL_TAGS.values() for tag in tags]
    command = ["exiftool", "-j", "-G1", "-charset", "iptc=utf8", *tags, *map(str, paths)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


@needs_exiftool
def test_exiftool_reads_the_sidecars(write, album):
    write("--format", "xmp")
    (found,) = exiftool("photos/in.side/é 4.jpg.xmp")
    assert found["XMP-dc:Description"] == found["XMP-iptcCore:ExtDescrAccessibility"] == LONG
    assert found["XMP-photoshop:CaptionWriter"] == "bob (person)"
    assert len(found["XMP-iptcCore:AltTextAccessibility"]) <= 125


@needs_exiftool
def test_another_program_s_sidecar_is_edited_not_replaced(write, album):
    subprocess.run(["exiftool", "-q", "-XMP-xmp:Rating=4", "-o", "photos/a.jpg.xmp", "photos/a.jpg"], check=True)
    subprocess.run(["exiftool", "-q", "-XMP-dc:Description=mine", "-o", "photos/b.png.xmp", "photos/b.png"], check=True)
    assert "b.png.xmp: holds words of a person; kept" in write("--format", "xmp", status=3)
    rating = subprocess.run(["exiftool", "-s3", "-XMP-xmp:Rating", "photos/a.jpg.xmp"], capture_output=True, text=True)
    assert rating.stdout == "4\n" and exiftool("photos/a.jpg.xmp")[0]["XMP-dc:Description"].startswith("colour")
    assert exiftool("photos/b.png.xmp")[0]["XMP-dc:Description"] == "mine"


def pixels(path: Path) -> list[int]:
    return np.asarray(Image.open(path)).ravel().tolist()


@needs_exiftool
def test_embedding_leaves_the_pixels_alone_and_exiftool_reads_the_words(write, album, expected):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    heif.from_pillow(Image.new("RGB", (64, 64), (9, 8, 7))).save("photos/e.heic")
    assert update_with(StubCaptioner(), "album.captions", "photos").captioned == 1
    with Project(album) as project:
        rows = project.rows("SELECT path, caption FROM annotations")
    before = {row["path"]: pixels(row["path"]) for row in rows}
    originals = {row["path"]: Path(row["path"]).read_bytes() for row in rows}
    write("--format", "embedded", "-o", "copies")
    assert {path: Path(path).read_bytes() for path in before} == originals
    for row in rows:
        copy = Path("copies", row["path"])
        assert pixels(copy) == before[row["path"]]
        (found,) = exiftool(copy)
        assert found["XMP-dc:Description"] == row["caption"] and found["XMP-photoshop:CaptionWriter"]
        assert found["XMP-iptcCore:AltTextAccessibility"]
        if copy.suffix == ".jpg":
            assert found["IPTC:Caption-Abstract"] == row["caption"]


@needs_exiftool
def test_embedding_in_place_keeps_the_project_up_to_date_and_people_s_words(write, album, expected):
    subprocess.run(["exiftool", "-q", "-overwrite_original", "-XMP-dc:Description=mine", "photos/b.png"], check=True)
    assert "b.png: has a description by a person; kept" in write("--format", "embedded", status=3)
    assert exiftool("photos/b.png")[0]["XMP-dc:Description"] == "mine"
    stub = StubCaptioner()
    summary = update_with(stub, "album.captions", "photos")
    assert (summary.captioned, stub.captioned, summary.by_people) == (0, 0, 3)
    with Project(album) as project:
        assert project.image(1).words is None, "our own words in it are no person's"
        assert project.flags(2) == {
            "two texts": "embedded: mine",
            "photo changed": "the file has changed since a person described it",
            "blank": "",
        }
    assert update_with(StubCaptioner(), "other.captions", "photos").captioned == 1


def test_without_exiftool_the_message_says_what_to_do(write, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    said = write("--format", "embedded", "-o", "out", status=2)
    assert "exiftool is not installed" in said and "--format xmp" in said and not Path("out").exists()


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "word", "-o", "x"], "--format word: unknown; choose one of jsonl"),
        (["--format", "coco"], "--format coco needs an output: -o OUT"),
        (["--format", "imagefolder", "-o", "photos"], "photos: exists already"),
        (["--format", "jsonl", "-o", "nowhere/out.jsonl"], "there is no folder nowhere"),
        (["--format", "jsonl", "-o", "x", "--push", "a/b"], "--push needs --format hf"),
    ],
)
def test_mistakes_cost_one_line_and_write_nothing(write, arguments, message):
    before = sorted(os.listdir())
    said = write(*arguments, status=2)
    assert message in said and said.count("\n") == 1
    assert sorted(os.listdir()) == before


def test_an_image_that_is_gone_is_left_out_and_named(write):
    Path("photos/a.jpg").unlink()
    assert "photos/a.jpg: cannot be read: No such file" in write("--format", "imagefolder", "-o", "out", status=3)
    assert len(trained_on("out")) == 3


def test_a_full_disk_leaves_no_half_written_file(write, album, full_disk):
    with Project(album) as project, project.transaction() as connection:
        connection.execute("UPDATE captions SET text = ?", ("long " * 3000,))
    with full_disk():
        write("--format", "jsonl", "-o", "out.jsonl", status=2)
        write("--format", "parquet", "-o", "out.parquet", status=2)
    assert not list(Path().glob("out*"))
