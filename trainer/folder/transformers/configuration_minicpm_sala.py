"""Configuration of a minicpm_sala hybrid: block-sparse softmax layers (InfLLM-V2) among linear ones
(lightning attention). The keys are those of MiniCPM-SALA's config.json, which states all of them.
"""
from transformers import PretrainedConfig

SPARSE_DEFAULTS = {"kernel_size": 32, "kernel_stride": 16, "init_blocks": 1, "block_size": 64,
                   "window_size": 2048, "topk": 64, "dense_len": 8192, "use_nope": False}
SPARSE, LIGHTNING = ("minicpm4",), ("lightning-attn", "lightning_attn", "lightning")


class MiniCPMSALAConfig(PretrainedConfig):
    model_type = "minicpm_sala"
    keys_to_ignore_at_inference = ["past_key_values"]
    rope_scaling = None  # a plain attribute; transformers 5 has a property here that renames it

    def __init__(
        self,
        vocab_size=73448,
        hidden_size=4096,
        intermediate_size=16384,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=None,   # of sparse layers
        head_dim=None,
        max_position_embeddings=32768,
        initializer_range=0.1,
        rms_norm_eps=1e-6,
        use_cache=True,
        tie_word_embeddings=False,
        attention_bias=False,       # on q, k, v, o and both gates
        rope_theta=10000.0,
        rope_scaling=None,          # {"rope_type": linear, llama3, yarn or longrope, ...}
        scale_emb=1.0,              # times the embeddings
        scale_depth=1.0,            # scale_depth / sqrt(layers): times what a mixer or MLP adds
        dim_model_base=1,           # dim_model_base / hidden_size: times the logits
        mixer_types=None,           # "minicpm4" (sparse) or "lightning-attn", one for each layer
        sparse_config=None,
        attn_use_rope=False,        # of sparse layers
        attn_use_output_gate=True,
        lightning_nkv=None,         # of lightning layers
        lightning_scale="1/sqrt(d)",  # or "1/d", or a number
        lightning_use_rope=True,
        qk_norm=True,
        use_output_norm=True,
        use_output_gate=True,
        **kwargs,
    ):
        newer = kwargs.pop("rope_parameters", None) or {}  # as transformers 5 writes the two
        scaled = newer.get("rope_type", "default") != "default"
        self.rope_theta = newer.get("rope_theta", rope_theta)
        self.rope_scaling = rope_scaling or (newer if scaled else None)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.attention_bias = attention_bias
        self.scale_emb = scale_emb
        self.scale_depth = scale_depth
        self.dim_model_base = dim_model_base
        self.mixer_types = mixer_types or [SPARSE[0]] * num_hidden_layers
        self.sparse_config = {**SPARSE_DEFAULTS, **(sparse_config or {})}
        self.attn_use_rope = attn_use_rope
        self.attn_use_output_gate = attn_use_output_gate
        self.lightning_nkv = lightning_nkv or self.num_key_value_heads
        self.lightning_scale = lightning_scale
        self.lightning_use_rope = lightning_use_rope
        self.qk_norm = qk_norm
        self.use_output_norm = use_output_norm
        self.use_output_gate = use_output_gate
        unknown = set(self.mixer_types) - {*SPARSE, *LIGHTNING}
        if unknown or len(self.mixer_types) != num_hidden_layers:
            raise ValueError(f"mixer_types: expected minicpm4 or lightning-attn for each of the "
                             f"{num_hidden_layers} layers, got {self.mixer_types}")
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    def to_diff_dict(self):
        """What is saved. Readers differ in what an absent flag means to them: it is stated."""
        return {**super().to_diff_dict(), "tie_word_embeddings": self.tie_word_embeddings}
