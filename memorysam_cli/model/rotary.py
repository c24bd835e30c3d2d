"""The rotary attention of SAM2's memory, with our products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sam2.modeling.position_encoding import apply_rotary_enc
from sam2.modeling.sam.transformer import RoPEAttention
from torch import Tensor, nn

from memorysam_cli.model.dot_product import scaled_dot_product


class RotaryAttention(RoPEAttention):  # type: ignore[misc]  # sam2 has no types
    """SAM2's ``RoPEAttention``: same parameters, same names, same result; the rotary table must fit the queries."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Tensor:
        """Attend to memories.

        Args:
            q: (B, L', C) queries.
            k: (B, L, C_m) keys before their projection.
            v: (B, L, C_m) values likewise.
            num_k_exclude_rope: how many keys at the end have no place, and are not rotated.

        Returns:
            (B, L', C).
        """
        query, key, value = (
            self._separate_heads(layer(part), self.num_heads)  # (B, L, C) -> (B, heads, L, d)
            for layer, part in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        placed, others = torch.split(key, [key.shape[2] - num_k_exclude_rope, num_k_exclude_rope], dim=2)
        query, placed = apply_rotary_enc(query, placed, freqs_cis=self.freqs_cis, repeat_freqs_k=self.rope_k_repeat)
        key = torch.cat([placed, others], dim=2)
        if self.training and self.dropout_p:
            mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout_p)
        else:
            mixed = scaled_dot_product(query, key, value, learning=torch.is_grad_enabled())
        result: Tensor = self.out_proj(self._recombine_heads(mixed))
        return result


def use_fast_rotary_attention(network: nn.Module) -> None:
    """Make every ``RoPEAttention`` in a network one of ours, in place."""
    for module in network.modules():
        if type(module) is RoPEAttention:
            module.__class__ = RotaryAttention  # ours adds nothing to its state
