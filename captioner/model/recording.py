"""Records hidden states and attention weights, for `output_hidden_states` and `output_attentions`."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle


class Recording(TorchFunctionMode):
    """Inside this context, keeps the inputs of `layers`, and the weights of each attention if they are wanted.

    torch's fused attention returns no weights, so attention is computed step by step. Layers need not know.
    """

    def __init__(self, layers: nn.ModuleList, attentions: bool | None, hidden_states: bool | None) -> None:
        super().__init__()
        self.layers, self.keeps_attentions, self.keeps_hidden_states = layers, attentions, hidden_states
        self.hidden_states: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> "Recording":
        if self.keeps_hidden_states:
            self.handles = [layer.register_forward_pre_hook(self._keep_input) for layer in self.layers]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self.handles:
            handle.remove()

    def _keep_input(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.hidden_states.append(inputs[0])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.keeps_attentions and func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if is_causal:
            mask = scores.new_ones(scores.shape[-2:]).tril().bool()
        self.weights.append((scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1))
        return self.weights[-1].to(value.dtype) @ value

    def of_encoder(self, output: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """Fields of an encoder's output: layer inputs and `output`, [N, T, D], and attention weights [N, H, T, S]."""
        states = {"hidden_states": (*self.hidden_states, output)} if self.keeps_hidden_states else {}
        return states | ({"attentions": tuple(self.weights)} if self.keeps_attentions else {})

    def of_decoder(self, output: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """Fields of a decoder's output; each layer has self-attention, then cross-attention.

        The queries of cross-attention are those of all captions of an image, one caption after another.
        """
        states = {"decoder_hidden_states": (*self.hidden_states, output)} if self.keeps_hidden_states else {}
        if not self.keeps_attentions:
            return states
        length, across = output.shape[1], self.weights[1::2]
        if len(output) > len(across[0]):  # [B, H, K * T, P] -> [B * K, H, T, P]
            across = [own.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1) for own in across]
        return states | {"decoder_attentions": tuple(self.weights[::2]), "cross_attentions": tuple(across)}
