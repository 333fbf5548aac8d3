"""The shape of a decoder in this project's names, whatever the checkpoint calls them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and constants of a decoder; a dense model has no moe_layers.

    Attributes:
        vocab_size: Rows of the embedding, padding rows included.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP in layers without experts.
        num_hidden_layers: Decoder blocks.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads.
        head_dim: Width of a head.
        max_position_embeddings: Longest context that the model was made for.
        rms_norm_eps: Added to the mean square in norms.
        rope_theta: Base of the rotary frequencies.
        use_bias: Whether attention, MLPs and shared experts have biases.
        head_bias: Whether the head has one.
        moe_layers: Indices of the layers with routed experts.
        num_experts: Routed experts of such a layer.
        num_experts_per_tok: Routed experts that each token uses.
        moe_intermediate_size: Width of a routed expert.
        num_shared_experts: Experts that every token uses, held as one of their joint width.
        router_norm_min: Least sum by which routing weights are divided.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    use_bias: bool
    head_bias: bool
    moe_layers: tuple[int, ...] = ()
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    num_shared_experts: int = 0
    router_norm_min: float = 1e-12

    @property
    def kv_nbytes_per_token(self) -> int:
        """Bytes that one token adds to a bfloat16 KV cache."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * 2
