"""What tests of searches share, each a plain one over this: `pythonpath` in pyproject.toml lets them import it."""

import torch
from transformers.modeling_outputs import BaseModelOutput


@torch.no_grad()
def log_probs_after(model, image: torch.Tensor, sequences: list[tuple[int, ...]]) -> torch.Tensor:
    """[N, V], without a cache."""
    inputs = torch.tensor([(model.config.decoder_start_token_id, *tokens) for tokens in sequences])
    outputs = BaseModelOutput(image.expand(len(sequences), -1, -1))
    return model(encoder_outputs=outputs, decoder_input_ids=inputs).logits[:, -1].log_softmax(-1)
