"""A minicpm_sala hybrid in plain PyTorch: any device, any head size, batches padded on either side,
gradients, generation with a cache. Made for transformers 4.56 and later, and 5. On an
NVIDIA GPU in bf16 lightning layers take flash-linear-attention's kernels where they are installed.

Letters in shapes: B rows, T tokens of this call, S tokens with what the cache holds, H query heads,
K key/value heads, G = H / K, D head size, W compressed keys, N = B * K.

Lightning layers (arXiv:2401.04658, the decay constant): state_t = exp(-s_h) state_{t-1} + k_t v_t^T
and o_t = scale * state_t^T q_t. Sparse layers (InfLLM-V2, arXiv:2509.24663): a row shorter than
dense_len attends to all of its tokens; in a longer one each query chooses blocks of keys, those of
its neighbourhood and those whose compressed keys it scores highest.
"""
import dataclasses
import functools
import importlib
import inspect
import math
import os

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple, logging

from .configuration_minicpm_sala import LIGHTNING, MiniCPMSALAConfig

logger = logging.get_logger(__name__)

CHUNK = 128  # tokens of lightning attention that are multiplied pairwise
SLAB_SCORES = 2**26  # products of queries and keys at a time: bounds the memory of sparse attention
# What transformers calls a cache, in arguments and in what a model returns; "cache" since 5.24.
CACHE = next(field.name for field in dataclasses.fields(BaseModelOutputWithPast)
             if field.name in ("cache", "past_key_values"))


def wide(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


class MiniCPMSALACache:
    """What is kept of the tokens so far: of a sparse layer keys and values (B, K, S, D), of a
    lightning layer its state (B, H, D, D)."""

    # generate() of transformers 5 asks a cache that it is given.
    is_compileable = False  # sizes change with every token
    is_linear = (False,)  # tokens that are kept are not handed over again

    def __init__(self):
        self.layers = {}
        self.num_tokens = 0

    def append(self, layer, *new):
        """Keys and values so far, the new ones with them."""
        if layer in self.layers:
            new = tuple(torch.cat(pair, dim=2) for pair in zip(self.layers[layer], new))
        self.layers[layer] = new
        return new

    def get_seq_length(self, layer_idx=0):
        return self.num_tokens

    def reorder_cache(self, beam_idx):
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices):
        self.layers = {layer: tuple(x.index_select(0, indices.to(x.device)) for x in kept)
                       for layer, kept in self.layers.items()}

    def batch_repeat_interleave(self, repeats):
        self.layers = {layer: tuple(x.repeat_interleave(repeats, dim=0) for x in kept)
                       for layer, kept in self.layers.items()}


class MiniCPMSALARMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        y = wide(x)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


def rope_frequencies(config, num_tokens):
    """Inverse frequencies in fp32, D / 2 or such a row for each of num_tokens, and the factor of
    cosine and sine, by the formulas of transformers' modeling_rope_utils. num_tokens (B or 1, 1),
    of whole rows, chooses among longrope's two lists."""
    rope, theta, size = config.rope_scaling or {}, config.rope_theta, config.head_dim
    kind = rope.get("rope_type", rope.get("type", "default"))
    powers = theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    context = config.max_position_embeddings
    original = rope.get("original_max_position_embeddings", context)
    factor = rope.get("factor", context / original)
    amplitude = rope.get("attention_factor")
    if kind == "default":
        return 1 / powers, 1.0
    if kind == "linear":
        return 1 / powers / factor, 1.0
    if kind == "llama3":
        frequencies = 1 / powers
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = original / (2 * math.pi / frequencies)  # over the original context
        smooth = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 - smooth) * frequencies / factor + smooth * frequencies, 1.0
    if kind == "longrope":
        if amplitude is None:
            amplitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        long, short = (torch.tensor(rope[name], dtype=torch.float32, device=num_tokens.device)
                       for name in ("long_factor", "short_factor"))
        factors = torch.where(num_tokens > original, long, short)
        return 1 / (factors * powers.to(factors.device)), amplitude
    if kind == "yarn":
        low, high = (size / 2 * math.log(original / (2 * math.pi * turns), theta)
                     for turns in (rope.get("beta_fast", 32), rope.get("beta_slow", 1)))
        if rope.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        ramp = (torch.arange(size // 2, dtype=torch.float32) - low) / ((high - low) or 0.001)
        ramp = ramp.clamp(0, 1)
        if amplitude is None:
            def scale(m):
                return 0.1 * m * math.log(factor) + 1 if factor > 1 else 1.0
            both = rope.get("mscale"), rope.get("mscale_all_dim")
            amplitude = scale(both[0]) / scale(both[1]) if all(both) else scale(1)
        return ramp / (factor * powers) + (1 - ramp) / powers, amplitude
    raise ValueError(f"rope_scaling: expected linear, llama3, yarn or longrope, got {kind}")


def rotate(x, rope):
    """x (B, heads, T, D); rope: cosines and sines (B or 1, 1, T, D / 2) in fp32."""
    cos, sin = rope
    a, b = wide(x).chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


# ---------------------------------------------------------------- lightning attention

def decay_slopes(num_heads):
    """s_h = 2^(-8(h+1)/H); where H is no power of two, ALiBi's rule."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    return slopes + [2 ** (-4 * (h + 1) / power) for h in range(0, 2 * (num_heads - power), 2)]


@functools.cache
def fla_kernels(padded, with_gradients):
    """flash-linear-attention's kernels of attention with one decay a head: by chunks, and token by
    token without gradients. None where the package is not installed or does not run here, and
    where the environment says SALA_FLA=0. A decay for every token, as padding needs, takes other
    kernels; some of either kind refuse a GPU with some versions of Triton in the backward alone."""
    if os.environ.get("SALA_FLA") == "0":
        return None
    try:
        module = importlib.import_module("fla.ops.simple_gla")
        kernels = module.chunk_simple_gla, module.fused_recurrent_simple_gla
        for kernel in kernels:  # before 0.3 the order of dimensions was another
            if "g_gamma" not in inspect.signature(kernel).parameters:
                raise ImportError("needs version 0.3 or later")
        q = torch.zeros(1, 64, 1, 64, dtype=torch.bfloat16, device="cuda",
                        requires_grad=with_gradients)
        decay = fla_decay(torch.zeros(1, device="cuda"), q.new_ones(1, 64) if padded else None)
        for kernel in kernels[:1] if with_gradients else kernels:
            o, state = kernel(q, q, q, **decay, scale=1.0, output_final_state=True)
            if with_gradients:
                (o.sum() + state.sum()).backward()
        return kernels
    except ModuleNotFoundError as error:
        if error.name == "fla":
            return None
        reason = error
    except Exception as error:  # a Triton, a compiler or a GPU that it cannot use
        reason = error
    logger.warning("flash-linear-attention is installed, but does not run here %s%s (%s); there "
                   "lightning layers run in plain PyTorch",
                   "on padded rows " if padded else "", "in training" if with_gradients else
                   "without gradients", reason)
    return None


def fla_decay(slopes, keep):
    """Logarithms of the decay, fp32, as fla takes them: one a head, or with padding, which does
    not decay, one a head and token."""
    if keep is None:
        return {"g_gamma": -slopes}
    return {"g": -slopes * keep[:, :, None].to(slopes.dtype)}


def lightning_attention(q, k, v, scale, keep, state):
    """q, k, v (B, H, T, D); keep (B, T), False for padding, or None; state (B, H, D, D) or None.
    Returns o (B, H, T, D) and the state after the last token, in fp32."""
    with_gradients = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or
                                                  v.requires_grad)
    fla = None
    if q.is_cuda and q.dtype == torch.bfloat16 and q.size(-1) <= 256:
        fla = fla_kernels(keep is not None, with_gradients)
    if fla is None:
        return lightning_attention_by_chunks(q, k, v, scale, keep, state)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # fla's order is (B, T, H, D)
    T, H = q.shape[1:3]
    decay = fla_decay(torch.tensor(decay_slopes(H), device=q.device), keep)
    if keep is not None:
        k = k * keep[:, :, None, None]
    by_chunks, by_tokens = fla
    kernel = by_tokens if T < 64 and not with_gradients else by_chunks
    o, state = kernel(q, k, v, **decay, scale=scale, initial_state=state, output_final_state=True)
    return o.transpose(1, 2), state


def lightning_attention_by_chunks(q, k, v, scale, keep, state):
    """The same in plain PyTorch: fp32 inside, CHUNK tokens at a time."""
    dtype, (B, H, T, D) = q.dtype, q.shape
    q, k, v = wide(q) * scale, wide(k), wide(v)
    slopes = torch.tensor(decay_slopes(H), device=q.device, dtype=q.dtype).view(1, H, 1, 1)
    if keep is None:
        keep = torch.ones(1, T, dtype=torch.bool, device=q.device)
    else:
        k = k * keep[:, None, :, None]  # padding neither adds to the state nor lets it decay
    state = q.new_zeros(B, H, D, D) if state is None else state
    outputs = []
    for begin in range(0, T, CHUNK):
        part = slice(begin, begin + CHUNK)
        q_c, k_c, v_c = q[:, :, part], k[:, :, part], v[:, :, part]
        count = keep[:, None, part, None].cumsum(2).to(q.dtype)  # (B or 1, 1, C, 1)
        end = count[:, :, -1:]
        decay = torch.exp(-slopes * (count - count.transpose(2, 3)).clamp(min=0)).tril()
        o = (q_c @ k_c.transpose(2, 3) * decay) @ v_c + q_c * torch.exp(-slopes * count) @ state
        k_c = k_c * torch.exp(-slopes * (end - count))
        state = state * torch.exp(-slopes * end) + k_c.transpose(2, 3) @ v_c
        outputs.append(o)
    return torch.cat(outputs, dim=2).to(dtype), state


# ---------------------------------------------------------------- softmax attention

def mean_keys(k, size, stride):
    """Means of `size` keys every `stride`: k (N, S, D) to (N, W, D), in k's own type."""
    if k.size(1) < size:
        return k[:, :0]
    return F.avg_pool1d(wide(k).transpose(1, 2), size, stride).transpose(1, 2).to(k.dtype)


@torch.no_grad()
def choose_blocks(q, windows, first, scale, c):
    """Which blocks of keys each query attends to: bool (N, T, blocks). q (N, G, T, D) stand at
    positions `first` and on; windows: fine and coarse compressed keys. A window counts from its
    last token on; the coarse ones only give the normaliser of the fine ones' weights, which are
    summed over the G heads. A block scores the largest weight of the windows that touch it; ties go
    to the lower block; the first blocks and those just before the query are always in."""
    size, stride, block = c["kernel_size"], c["kernel_stride"], c["block_size"]
    t = first + torch.arange(q.size(2), device=q.device)[:, None]

    def logits(keys, size, stride):
        last = torch.arange(keys.size(1), device=q.device) * stride + size - 1
        products = scale * (wide(q) @ wide(keys)[:, None].transpose(2, 3))
        return products.masked_fill(last > t, -torch.inf)

    fine, coarse = windows
    norm = logits(coarse, 4 * size, 4 * stride).logsumexp(-1, keepdim=True)
    weights = (logits(fine, size, stride) - norm).clamp(max=80).exp()  # below fp32's overflow
    weights = weights.masked_fill(norm == -torch.inf, 0).sum(1)  # (N, T, W)
    num_blocks, ratio = (first + q.size(2) - 1) // block + 1, block // stride
    weights = F.pad(weights, (0, ratio * num_blocks - weights.size(2)))
    scores = F.max_pool1d(weights, ratio + 1, ratio, padding=1)
    b, own, local = torch.arange(num_blocks, device=q.device), t // block, c["window_size"] // block
    scores = scores.masked_fill((b < c["init_blocks"]) | (b >= own - local), torch.inf)
    scores = scores.masked_fill(b > own, -torch.inf)
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :c["topk"] + local]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True) & (b <= own)


def attend(q, k, v, scale, mask=None, is_causal=False):
    """Softmax attention: q (N, G, T, D), k and v (N, keys, D), mask (N or 1, T, keys)."""
    k, v = (x[:, None].expand(-1, q.size(1), -1, -1) for x in (k, v))
    mask = None if mask is None else mask[:, None]
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, scale=scale)


def attend_slab(q, k, v, windows, first, scale, c):
    """One slab of queries, at positions `first` and on: over the blocks that any of them chose, or
    over all keys up to each (windows None)."""
    T, S = q.size(2), k.size(1)
    t = first + torch.arange(T, device=q.device)[:, None]
    if windows is None:
        return attend(q, k, v, scale, (torch.arange(S, device=q.device) <= t)[None])
    with torch.autocast(q.device.type, enabled=False):
        chosen, block = choose_blocks(q, windows, first, scale, c), c["block_size"]
    used = chosen.any(1)
    count = int(used.sum(1).max())
    blocks = used.byte().sort(dim=1, descending=True, stable=True).indices[:, :count]
    keys = (blocks[:, :, None] * block + torch.arange(block, device=q.device)).flatten(1)
    mask = chosen.gather(2, blocks[:, None].expand(-1, T, -1)).repeat_interleave(block, dim=2)
    mask = mask & (keys[:, None] <= t)
    at = keys.clamp(max=S - 1)[:, :, None].expand(-1, -1, k.size(2))
    return attend(q, k.gather(1, at), v.gather(1, at), scale, mask)


def softmax_attention(q, k, v, c):
    """Rows without padding: q (B, H, T, D), the last T of the tokens of k and v (B, K, S, D)."""
    (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
    q, k, v = q.reshape(B * K, H // K, T, D), k.reshape(B * K, S, D), v.reshape(B * K, S, D)
    scale, sparse = D ** -0.5, S >= c["dense_len"]
    if not sparse and T in (1, S):
        return attend(q, k, v, scale, is_causal=T > 1).reshape(B, H, T, D)
    windows, outputs = None, []
    if sparse:
        windows = [mean_keys(k.detach(), n * c["kernel_size"], n * c["kernel_stride"])
                   for n in (1, 4)]
    slab = min(max(SLAB_SCORES // (B * H * S), 16), 1024)
    for begin in range(0, T, slab):
        first = S - T + begin
        end = min(first + slab, S)
        call = (q[:, :, begin:begin + slab], k[:, :end], v[:, :end], windows, first, scale, c)
        if torch.is_grad_enabled() and T > slab:  # computed again in the backward pass
            outputs.append(checkpoint(attend_slab, *call, use_reentrant=False))
        else:
            outputs.append(attend_slab(*call))
    return torch.cat(outputs, dim=2).reshape(B, H, T, D)


def softmax_attention_of_rows(q, k, v, rows, c):
    """The same for padded rows: each is cut out of the batch and attended alone; its own length
    says whether it is sparse. rows: for each one the numbers of its keys and of its queries."""
    o = torch.zeros_like(q)
    for b, (keys, queries) in enumerate(rows):
        if len(queries):
            own = q[b:b + 1, :, queries], k[b:b + 1, :, keys], v[b:b + 1, :, keys]
            o[b, :, queries] = softmax_attention(*own, c)[0]
    return o


# ---------------------------------------------------------------- the model

class MiniCPMSALAAttention(nn.Module):
    """Either mixer: projections, norms, rotation, attention, output norm and gate."""

    def __init__(self, config, layer):
        super().__init__()
        self.config, self.layer = config, layer
        self.lightning = config.mixer_types[layer] in LIGHTNING
        width, size, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.lightning_nkv if self.lightning else config.num_key_value_heads
        inner = self.num_heads * size
        self.q_proj = nn.Linear(width, inner, bias=bias)
        self.k_proj = nn.Linear(width, self.num_kv_heads * size, bias=bias)
        self.v_proj = nn.Linear(width, self.num_kv_heads * size, bias=bias)
        self.o_proj = nn.Linear(inner, width, bias=bias)
        if not self.lightning:
            self.use_rope = config.attn_use_rope
            if config.attn_use_output_gate:
                self.o_gate = nn.Linear(width, inner, bias=bias)
            return
        self.use_rope = config.lightning_use_rope
        scale = config.lightning_scale
        self.scale = {"1/sqrt(d)": size ** -0.5, "1/d": 1 / size}.get(scale, scale)
        if config.qk_norm:
            self.q_norm = MiniCPMSALARMSNorm(size, config.rms_norm_eps)
            self.k_norm = MiniCPMSALARMSNorm(size, config.rms_norm_eps)
        if config.use_output_norm:
            self.o_norm = MiniCPMSALARMSNorm(inner, config.rms_norm_eps)
        if config.use_output_gate:
            self.z_proj = nn.Linear(width, inner, bias=bias)

    def forward(self, x, rope, keep, rows, cache):
        B, T, _ = x.shape
        q, k, v = (f(x).view(B, T, -1, self.config.head_dim).transpose(1, 2)
                   for f in (self.q_proj, self.k_proj, self.v_proj))
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        if self.use_rope:
            q, k = rotate(q, rope), rotate(k, rope)
        o = (self.attend_lightning if self.lightning else self.attend_softmax)(
            q, k, v, keep, rows, cache)
        o = o.transpose(1, 2).reshape(B, T, -1)
        if hasattr(self, "o_norm"):
            o = self.o_norm(o)
        for gate in ("z_proj", "o_gate"):
            if hasattr(self, gate):
                o = o * torch.sigmoid(getattr(self, gate)(x))
        return self.o_proj(o)

    def attend_lightning(self, q, k, v, keep, rows, cache):
        if self.num_kv_heads < self.num_heads:
            group = self.num_heads // self.num_kv_heads
            k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        state = cache.layers.get(self.layer, (None,))[0] if cache is not None else None
        keep = None if keep is None else keep[:, -q.size(2):]
        with torch.autocast(q.device.type, enabled=False):
            o, state = lightning_attention(q, k, v, self.scale, keep, state)
        if cache is not None:
            cache.layers[self.layer] = (state,)
        return o

    def attend_softmax(self, q, k, v, keep, rows, cache):
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        if rows is None:
            return softmax_attention(q, k, v, self.config.sparse_config)
        return softmax_attention_of_rows(q, k, v, rows, self.config.sparse_config)


class MiniCPMSALAMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MiniCPMSALALayer(GradientCheckpointingLayer):
    def __init__(self, config, layer):
        super().__init__()
        self.self_attn = MiniCPMSALAAttention(config, layer)
        self.mlp = MiniCPMSALAMLP(config)
        self.input_layernorm = MiniCPMSALARMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = MiniCPMSALARMSNorm(config.hidden_size, config.rms_norm_eps)
        self.residual_scale = config.scale_depth / math.sqrt(config.num_hidden_layers)

    def forward(self, x, rope, keep, rows, **cache):  # by name: gradient checkpointing drops it
        mixed = self.self_attn(self.input_layernorm(x), rope, keep, rows, cache[CACHE])
        x = x + self.residual_scale * mixed
        return x + self.residual_scale * self.mlp(self.post_attention_layernorm(x))


class MiniCPMSALAPreTrainedModel(PreTrainedModel):
    config_class = MiniCPMSALAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MiniCPMSALALayer"]
    _skip_keys_device_placement = [CACHE]
    _supports_sdpa = True
    _is_stateful = True  # a lightning state cannot be taken back by some tokens


class MiniCPMSALAModel(MiniCPMSALAPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            MiniCPMSALALayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = MiniCPMSALARMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None,
                inputs_embeds=None, use_cache=None, output_hidden_states=None, cache=None,
                **kwargs):
        """attention_mask (B, S): 0 for padding, anywhere in a row. position_ids (B, T) only turn
        the rotary embedding; without them a row's tokens are counted. cache and past_key_values are
        two names of one argument."""
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        cache = past_key_values if cache is None else cache
        if cache is None and use_cache:
            cache = MiniCPMSALACache()
        if cache is not None and not isinstance(cache, MiniCPMSALACache):
            raise TypeError(f"{CACHE}: expected the MiniCPMSALACache of an earlier call, got "
                            f"{type(cache).__name__}")
        x = self.embed_tokens(input_ids) * self.config.scale_emb if inputs_embeds is None \
            else inputs_embeds
        T = x.size(1)
        S = T + (cache.num_tokens if cache is not None else 0)
        keep, rows = self.padding(attention_mask, (x.size(0), S), T)
        if position_ids is None:
            position_ids = torch.arange(S, device=x.device)[None] if keep is None \
                else keep.cumsum(1) - 1
            position_ids = position_ids[:, -T:]
        # A row's own tokens, whatever it is padded to.
        num_tokens = torch.tensor([[S]]) if keep is None else keep.sum(1, keepdim=True)
        rope = self.rotation(position_ids, num_tokens)
        states = []
        for layer in self.layers:
            states.append(x)
            x = layer(x, rope, keep, rows, **{CACHE: cache})
        if cache is not None:
            cache.num_tokens = S
        x = self.norm(x)
        output_hidden_states = output_hidden_states or self.config.output_hidden_states
        return BaseModelOutputWithPast(
            last_hidden_state=x, hidden_states=(*states, x) if output_hidden_states else None,
            **{CACHE: cache})

    @staticmethod
    def padding(attention_mask, shape, num_queries):
        """Where tokens are that count, and for each row which keys and queries that are; None and
        None where all do."""
        if attention_mask is None:
            return None, None
        if tuple(attention_mask.shape) != shape:
            raise ValueError(f"attention_mask: expected {shape}, one number for each token and "
                             f"each cached one, got {tuple(attention_mask.shape)}")
        keep = attention_mask != 0
        if bool(keep.all()):
            return None, None
        rows = [(row.nonzero().squeeze(1), row[-num_queries:].nonzero().squeeze(1)) for row in keep]
        return keep, rows

    def rotation(self, position_ids, num_tokens):
        frequencies, amplitude = rope_frequencies(self.config, num_tokens)
        frequencies = frequencies.view(-1, 1, 1, frequencies.size(-1)).to(position_ids.device)
        angles = position_ids[:, None, :, None].float() * frequencies
        return angles.cos() * amplitude, angles.sin() * amplitude


class MiniCPMSALAForCausalLM(MiniCPMSALAPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = MiniCPMSALAModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.logit_scale = config.dim_model_base / config.hidden_size
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False  # generate() leaves the cache to the first forward pass

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None,
                inputs_embeds=None, labels=None, use_cache=None, output_hidden_states=None,
                logits_to_keep=0, cache=None, **kwargs):
        """labels (B, T), -100 for none, are shifted here. logits_to_keep: only of the last tokens,
        0 for all."""
        out = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds,
                         use_cache, output_hidden_states, cache, return_dict=True)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, kept] * self.logit_scale)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels,
                                      vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=out.hidden_states,
                                      **{CACHE: out[CACHE] if CACHE in out else None})
