"""Defines the sizes of a tiny checkpoint: one frozen struct and its presets."""

from dataclasses import dataclass

DEEPSTACK_MAPS = 3
"""The real vision tower outputs three intermediate feature maps. They are added after the thinker's layers 0, 1 and
2.
"""


@dataclass(frozen=True)
class Decoder:
    """The sizes of a causal transformer with grouped-query attention and SwiGLU feed-forward (dense, or per expert)."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    experts: int = 0
    experts_per_token: int = 0

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key/value heads evenly")
        if any(size % 2 for size in (self.heads, self.kv_heads, self.head_dim, self.intermediate)):
            raise ValueError(f"sizes must be even for tensor parallelism over two devices: {self}")
        if self.experts_per_token > self.experts:
            raise ValueError(f"a token cannot use {self.experts_per_token} of {self.experts} experts")


@dataclass(frozen=True)
class Tower:
    """The sizes of a bidirectional transformer over audio frames or image patches. The heads split `hidden` evenly."""

    hidden: int
    layers: int
    heads: int
    intermediate: int


@dataclass(frozen=True)
class Shapes:
    """The sizes of a checkpoint. All other settings have the values of the real model."""

    text_ranks: int
    """The number of Qwen's byte-pair ranks that are kept. The role words and the special tokens are added to them."""
    thinker: Decoder
    audio: Tower
    audio_conv_channels: int
    vision: Tower
    vision_position_grid: int
    """The side of the square of learned vision positions, which is resampled for each image."""
    deepstack_blocks: tuple[int, int, int]
    talker: Decoder
    talker_projection: int
    """The inner width of the two-layer projections from thinker states to talker inputs."""
    shared_expert: int
    code_predictor: Decoder
    code_groups: int
    """The number of codebooks. A speech frame has one code from each codebook."""
    codebook: int
    """The number of entries of a codebook."""
    code2wav: Decoder
    code2wav_window: int
    """The number of frames that a vocoder frame attends to, including itself."""
    decoder_channels: int
    """The number of channels at the input of the vocoder's convolutions. Each of four upsampling blocks halves the
    number.
    """

    def __post_init__(self) -> None:
        if self.thinker.layers <= DEEPSTACK_MAPS + 1:
            raise ValueError(f"{self.thinker.layers} thinker layers are too few; use at least {DEEPSTACK_MAPS + 2}")
        if max(self.deepstack_blocks) >= self.vision.layers:
            raise ValueError(f"DeepStack reads blocks {self.deepstack_blocks}, but there are {self.vision.layers}")
        if self.code_predictor.hidden != self.talker.hidden:
            raise ValueError("the hidden sizes of talker and code predictor must be equal")

    @property
    def accept_hidden_layer(self) -> int:
        """The thinker's layer whose states the talker gets for media rows: the middle layer, as in the real model (24
        of 48).

        The layer must come after all DeepStack maps are added, and before the last layer, because only the last layer's
        state is normed.
        """
        return max(DEEPSTACK_MAPS + 1, self.thinker.layers // 2)


# The presets nano and tiny differ not only in scale but also in ratios (head size, query heads per key/value head,
# experts, code groups). So code that mixes up two sizes cannot pass the tests with both presets. The preset small is
# for measuring time.
PRESETS = {
    "nano": Shapes(
        text_ranks=1500,
        thinker=Decoder(48, 5, heads=4, kv_heads=4, head_dim=16, intermediate=32, experts=4, experts_per_token=2),
        audio=Tower(32, 2, heads=2, intermediate=64),
        audio_conv_channels=8,
        vision=Tower(32, 4, heads=2, intermediate=64),
        vision_position_grid=12,
        deepstack_blocks=(0, 1, 2),
        talker=Decoder(32, 2, heads=4, kv_heads=2, head_dim=16, intermediate=16, experts=6, experts_per_token=3),
        talker_projection=64,
        shared_expert=24,
        code_predictor=Decoder(32, 2, heads=4, kv_heads=2, head_dim=8, intermediate=64),
        code_groups=8,
        codebook=128,
        code2wav=Decoder(32, 2, heads=2, kv_heads=2, head_dim=16, intermediate=64),
        code2wav_window=12,
        decoder_channels=48,
    ),
    "tiny": Shapes(
        text_ranks=3000,
        thinker=Decoder(128, 6, heads=4, kv_heads=2, head_dim=32, intermediate=64, experts=8, experts_per_token=2),
        audio=Tower(64, 3, heads=4, intermediate=128),
        audio_conv_channels=16,
        vision=Tower(64, 6, heads=4, intermediate=128),
        vision_position_grid=24,
        deepstack_blocks=(1, 2, 4),
        talker=Decoder(96, 3, heads=8, kv_heads=2, head_dim=16, intermediate=48, experts=8, experts_per_token=3),
        talker_projection=128,
        shared_expert=64,
        code_predictor=Decoder(96, 3, heads=4, kv_heads=2, head_dim=32, intermediate=128),
        code_groups=16,
        codebook=256,
        code2wav=Decoder(96, 2, heads=4, kv_heads=4, head_dim=24, intermediate=192),
        code2wav_window=16,
        decoder_channels=96,
    ),
    "small": Shapes(
        text_ranks=6000,
        thinker=Decoder(384, 8, heads=8, kv_heads=4, head_dim=64, intermediate=64, experts=16, experts_per_token=4),
        audio=Tower(192, 4, heads=6, intermediate=384),
        audio_conv_channels=48,
        vision=Tower(192, 8, heads=6, intermediate=384),
        vision_position_grid=48,
        deepstack_blocks=(2, 4, 6),
        talker=Decoder(256, 5, heads=8, kv_heads=2, head_dim=64, intermediate=64, experts=16, experts_per_token=4),
        talker_projection=256,
        shared_expert=128,
        code_predictor=Decoder(256, 5, heads=8, kv_heads=4, head_dim=64, intermediate=512),
        code_groups=16,
        codebook=256,
        code2wav=Decoder(256, 4, heads=8, kv_heads=8, head_dim=32, intermediate=512),
        code2wav_window=72,
        decoder_channels=256,
    ),
}
