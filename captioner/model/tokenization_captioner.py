"""SentencePiece tokenizer in transformers' form (Kudo and Richardson 2018, https://arxiv.org/abs/1808.06226)."""

from typing import Any

from transformers.tokenization_utils_sentencepiece import SentencePieceBackend


class CaptionerTokenizer(SentencePieceBackend):
    """Text <-> ids; `tokenizer(text).input_ids` ends with the end-of-sequence token and has no start token.

    The model file's own normalisation (NFKC, lower case where trained so) is part of every encoding.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 - transformers' form

    def __init__(
        self,
        vocab_file: str,
        pad_token: str = "<pad>",
        bos_token: str = "<s>",
        eos_token: str = "</s>",
        unk_token: str = "<unk>",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            vocab_file=vocab_file,
            pad_token=pad_token,
            bos_token=bos_token,
            eos_token=eos_token,
            unk_token=unk_token,
            **kwargs,
        )

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return token_ids_0 + (token_ids_1 or []) + [self.eos_token_id]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self.sp_model.decode_pieces(tokens)
