"""How to use a CPU well: how threads wait, memory that is used again, packed linear layers.

Three files, since `threads` runs before torch is imported and `packed_linears` needs torch.
"""
