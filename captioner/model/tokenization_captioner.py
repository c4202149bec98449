"""SentencePiece tokenizer in transformers' form (Kudo and Richardson 2018, https://arxiv.org/abs/1808.06226)."""

from typing import Any

from transformers.tokenization_utils_sentencepiece import SentencePieceBackend


class CaptionerTokenizer(SentencePieceBackend):
    """Text <-> ids; `tokenizer(text).input_ids` ends with the end-of-sequence token and has no start token.

    The model file normalises every text (NFKC, and lower case if it was trained that way). Text that looks like a
    special token, as in "a sign that says </s>", is encoded as text.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 - transformers' form

    def __init__(
        self,
        vocab_file: str,
        pad_token: str = "<pad>",
        bos_token: str = "<s>",
        eos_token: str = "</s>",
        unk_token: str = "<unk>",
        split_special_tokens: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            vocab_file=vocab_file,
            pad_token=pad_token,
            bos_token=bos_token,
            eos_token=eos_token,
            unk_token=unk_token,
            split_special_tokens=split_special_tokens,
            **kwargs,
        )

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        # Through ids: `encode` to pieces would return unknown characters unchanged, which might look like a token.
        return self.sp_model.id_to_piece(self.sp_model.encode(text))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return token_ids_0 + (token_ids_1 or []) + [self.eos_token_id]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        return [0] * len(token_ids_0 + (token_ids_1 or [])) + [1]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self.sp_model.decode_pieces(tokens)


# So that save_pretrained copies this code into the folder, for trust_remote_code=True.
CaptionerTokenizer.register_for_auto_class()
