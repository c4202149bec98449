"""The JSON of `POST /v1/captions` and `POST /v1/explain`. The OpenAPI document is made from these classes."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from captioner.infer.caption import Caption
from captioner.infer.explain import Explanation
from captioner.serve.errors import RequestError

Word = Annotated[str, Field(min_length=1, max_length=100)]
Name = Annotated[str, Field(max_length=1000)]


class Options(BaseModel):
    """How captions are written: the options of `infer.py`. Unset ones default to the model's own."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    num_beams: int | None = Field(None, ge=1, le=16, description="Beam width; 1 is greedy.")
    max_new_tokens: int | None = Field(None, ge=1, le=1024, description="Longest caption in tokens.")
    min_new_tokens: int | None = Field(None, ge=0, le=1024, description="Shortest caption in tokens.")
    no_repeat_ngram_size: int | None = Field(
        None, ge=0, le=1024, description="Never repeat an n-gram of this many tokens; 0 is off."
    )
    length_penalty: float | None = Field(None, ge=-50, le=50, description="Above 0 favours longer captions.")
    prefix: str = Field("", max_length=500, description="Start every caption with this.")
    banned_words: list[Word] = Field([], max_length=64, description="Words or phrases that no caption may use.")
    forced_words: list[Word] = Field([], max_length=16, description="Words or phrases that every caption must use.")
    do_sample: bool | None = Field(None, description="Sample captions instead of searching.")
    temperature: float | None = Field(None, gt=0, le=1000, description="Sampling: above 1 is more varied.")
    top_k: int | None = Field(None, ge=0, le=2**31 - 1, description="Sampling: keep the k most probable tokens.")
    top_p: float | None = Field(
        None, gt=0, le=1, description="Sampling: keep the smallest set of tokens with this probability."
    )
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="Sampling: the same seed gives the same captions.")
    num_return_sequences: int | None = Field(None, ge=1, le=16, description="Captions per image.")


class NamedImage(BaseModel):
    """An image and what it is called in the answer."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    data: str = Field(description="The bytes of an image file in base64, or a data URL.")


class CaptionRequest(Options):
    """Images, and options for all of them."""

    images: list[str | NamedImage] = Field(min_length=1, description="In base64, or as data URLs.")


class Alternative(BaseModel):
    caption: str
    confidence: float


class TagScore(BaseModel):
    tag: str
    score: float


class WordConfidence(BaseModel):
    word: str
    confidence: float = Field(description="How sure the model is of the word, from 0 to 1.")


class HeatMaps(BaseModel):
    """Where in the photo each word comes from."""

    rows: int
    columns: int
    window: list[float] = Field(description="Left, top, right and bottom of the maps, as shares of the photo's size.")
    maps: list[list[float]] = Field(description="Of each word, the heat of its cells from 0 to 1, row by row.")


class Captioned(BaseModel):
    """An image's caption: a record as `infer.py` writes it, and the confidence of each word."""

    image: str
    caption: str
    confidence: float
    words: list[WordConfidence]
    alternatives: list[Alternative]
    tags: list[TagScore]
    width: int
    height: int
    heat: HeatMaps | None = Field(None, description="Of `/v1/explain`.")


class Failed(BaseModel):
    """An image that has no caption, and why."""

    image: str
    error: str
    message: str


class CaptionResponse(BaseModel):
    """A result for each image, in order. The status is 200 if at least one has a caption, 422 if none has."""

    model: str
    results: list[Captioned | Failed]


class Problem(BaseModel):
    """Why a request failed."""

    error: str
    message: str


def captioned(name: str, caption: Caption, width: int, height: int, explanation: Explanation | None) -> Captioned:
    return Captioned(
        image=name,
        caption=caption.text,
        confidence=round(caption.confidence, 4),
        words=[WordConfidence(word=word.text, confidence=round(word.confidence, 4)) for word in caption.words],
        alternatives=[
            Alternative(caption=other.text, confidence=round(other.confidence, 4)) for other in caption.alternatives
        ],
        tags=[TagScore(tag=tag.text, score=round(tag.score, 4)) for tag in caption.tags],
        width=width,
        height=height,
        heat=None if explanation is None else heat_maps(explanation),
    )


def heat_maps(explanation: Explanation) -> HeatMaps:
    """The maps of an explanation, each from 0 to 1, and the part of the photo that they cover."""
    _, rows, columns = explanation.maps.shape
    width, height = explanation.photo.size
    left, top, right, bottom = explanation.window
    peaks = explanation.maps.max((1, 2), keepdims=True)
    return HeatMaps(
        rows=rows,
        columns=columns,
        window=[left / width, top / height, right / width, bottom / height],
        maps=[one.ravel().round(3).tolist() for one in explanation.maps / peaks],
    )


def validated(model: type[BaseModel], content: Any) -> Any:
    """Check a request against its schema: JSON bytes, or fields that were read elsewhere.

    Raises:
        RequestError: it does not match; the message names the fields and never repeats what they hold.
    """
    try:
        return model.model_validate_json(content) if isinstance(content, bytes) else model.model_validate(content)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        lines = [f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in faults[:3]]
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise RequestError(400, "invalid_request", "; ".join(lines)[:500] + more) from None
