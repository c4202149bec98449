import pytest

from captioner.errors import CaptionerError
from captioner.infer.options import GenerationOptions


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_beams": "3"}, "num_beams must be a whole number; it is 3"),
        ({"max_new_tokens": 7.5}, "max_new_tokens must be a whole number; it is 7.5"),
        ({"do_sample": True, "top_p": "0.9"}, "top_p must be a number; it is 0.9"),
        ({"do_sample": True, "seed": 0.5}, "seed must be a whole number; it is 0.5"),
    ],
)
def test_values_of_another_kind_is_refused(fields, message):
    with pytest.raises(CaptionerError, match=message):
        GenerationOptions(**fields)
