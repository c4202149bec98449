"""Makes torch faster on a CPU.

`threads` limits how long waiting threads spin, and runs before torch is imported; `memory` keeps freed memory;
`packed_linears` speeds up decoding, `bfloat16_gradients` training.
"""
