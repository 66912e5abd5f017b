"""A U-Net in PyTorch: the network whose weights are in the .pt file beside this file.

    import torch
    from unet import load

    network = load("model.pt")                         # encoder.pt is loaded in the same way
    output = network(torch.rand(1, 1, 64, 64))         # (batch, contrasts, rows, columns[, slices]), float32

Needs PyTorch and nothing else. The .pt file is a state dict: `torch.load("model.pt", weights_only=True)`. Its names are
those of the layers: half, level and part, such as `encoder_3_conv_1.weight`. Level 1 of the encoder is the finest,
level 1 of the decoder the coarsest. To start another U-Net from the weights of an encoder:

    network = UNet(rank=2, contrasts=1, filters=[16, 32, 64], decoder_levels=2, head="segmentation", outputs=3)
    network.load_state_dict(torch.load("encoder.pt", weights_only=True), strict=False)
"""

import math

import torch
from torch import nn
from torch.nn import functional

CHANNELS_PER_GROUP = 4  # of group normalisation
EPSILON = 1e-3  # of group normalisation; PyTorch's default is 1e-5
HEADS = ("segmentation", "reconstruction", "synthesis")
SYNTHESIS_FILTERS = 16


class UNet(nn.Module):
    """Encoder, full, partial or no decoder, and one head or none.

    Args:
        rank: 2 for images, 3 for volumes.
        contrasts: Number of input channels.
        filters: Channels of each level, finest first.
        decoder_levels: How many levels the decoder has, coarsest first; 0 for an encoder alone.
        head: "segmentation", "reconstruction", "synthesis" or None.
        outputs: Channels of the head: classes with background first, or contrasts.
        head_block: Whether a segmentation head has one more convolution, with normalisation, before its last one.
    """

    def __init__(self, rank, contrasts, filters, decoder_levels=0, head=None, outputs=None, head_block=False):
        super().__init__()
        self.rank, self.levels, self.decoder_levels, self.head = rank, len(filters), decoder_levels, head
        channels = contrasts
        for level, width in enumerate(filters, start=1):
            self._add_two_blocks(f"encoder_{level}", channels, width)
            channels = width
        for level in range(1, decoder_levels + 1):
            width = filters[-level - 1]
            self._add_block(f"decoder_{level}_up", f"decoder_{level}_up_norm", channels, width, 2)
            self._add_two_blocks(f"decoder_{level}", 2 * width, width)  # with the encoder's features of that size
            channels = width
        if head == "synthesis":
            self._add_convolution("synthesis_hidden", channels + contrasts, SYNTHESIS_FILTERS, 1)
            channels = SYNTHESIS_FILTERS
        self.has_block = bool(head_block)
        if head_block:
            self._add_block(f"{head}_block_conv_1", f"{head}_block_norm_1", channels, channels, 3)
        if head:
            self._add_convolution(f"{head}_conv", channels, outputs, 1)

    def forward(self, images):
        """Compute the output of the network.

        Args:
            images: `(B, contrasts, H, W[, D])` float32; sizes must be multiples of 2**(levels - 1).

        Returns:
            For a segmentation, probabilities `(B, outputs, H, W[, D])`, background first; for other heads, intensities
            of the same shape. Without a head, the features of the last decoder level; without a decoder, a list of
            those of every encoder level, finest first.
        """
        if not self.decoder_levels:
            return self.encode(images)
        output = self.logits(images)
        return functional.softmax(output, dim=1) if self.head == "segmentation" else output

    def logits(self, images):
        """Compute the output before the softmax, which `torch.nn.functional.cross_entropy` takes."""
        x = self.decode(self.encode(images))
        if self.head == "synthesis":
            x = functional.relu(self.synthesis_hidden(torch.cat([x, images], dim=1)))
        if self.has_block:
            x = self._block(x, f"{self.head}_block_conv_1", f"{self.head}_block_norm_1")
        return getattr(self, f"{self.head}_conv")(x) if self.head else x

    def encode(self, images):
        """Return the features of every level of the encoder, finest first."""
        x, maps = images, []
        for level in range(1, self.levels + 1):
            x = self._halved(x) if level > 1 else x
            x = self._two_blocks(x, f"encoder_{level}")
            maps.append(x)
        return maps

    def decode(self, maps):
        """Return the features of the last decoder level from those of the encoder."""
        *skips, x = maps
        for level in range(1, self.decoder_levels + 1):
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = functional.pad(x, (0, 1) * self.rank)  # the 2 x 2 convolution looks at the next pixel, not the last
            x = self._block(x, f"decoder_{level}_up", f"decoder_{level}_up_norm")
            x = self._two_blocks(torch.cat([x, skips[-level]], dim=1), f"decoder_{level}")
        return x

    def _add_two_blocks(self, part, inputs, width):
        self._add_block(f"{part}_conv_1", f"{part}_norm_1", inputs, width, 3)
        self._add_block(f"{part}_conv_2", f"{part}_norm_2", width, width, 3)

    def _add_block(self, convolution, norm, inputs, width, kernel_size):
        self._add_convolution(convolution, inputs, width, kernel_size)
        groups = math.gcd(width, max(1, width // CHANNELS_PER_GROUP))
        self.add_module(norm, nn.GroupNorm(groups, width, eps=EPSILON))

    def _add_convolution(self, name, inputs, width, kernel_size):
        layer = {2: nn.Conv2d, 3: nn.Conv3d}[self.rank]
        self.add_module(name, layer(inputs, width, kernel_size, padding=(kernel_size - 1) // 2))

    def _two_blocks(self, x, part):
        x = self._block(x, f"{part}_conv_1", f"{part}_norm_1")
        return self._block(x, f"{part}_conv_2", f"{part}_norm_2")

    def _block(self, x, convolution, norm):
        return functional.relu(getattr(self, norm)(getattr(self, convolution)(x)))

    def _halved(self, x):
        return {2: functional.max_pool2d, 3: functional.max_pool3d}[self.rank](x, 2)


class Ensemble(nn.Module):
    """The mean of the outputs of several networks, `member_1`, `member_2`, ..."""

    def __init__(self, members):
        super().__init__()
        for number, member in enumerate(members, start=1):
            self.add_module(f"member_{number}", member)

    def forward(self, images):
        """Return the mean of the outputs, which `UNet.forward` describes."""
        return torch.stack([member(images) for member in self.children()]).mean(dim=0)


def load(path):
    """Build the network of a .pt file and load its weights, on the CPU and in evaluation mode."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = network_of(state)
    network.load_state_dict(state)
    return network.eval()


def network_of(state):
    """Build the network that a state dict belongs to, with new random weights."""
    members = sorted(
        {name.split(".")[0] for name in state if name.startswith("member_")}, key=lambda name: int(name[7:])
    )
    parts = [
        {name.removeprefix(f"{one}."): state[name] for name in state if name.startswith(f"{one}.")} for one in members
    ]
    return Ensemble([network_of(part) for part in parts]) if members else UNet(**settings_of(state))


def settings_of(state):
    """Return the arguments of the `UNet` that a state dict belongs to; all follow from the shapes of its weights."""
    shapes = {name.removesuffix(".weight"): tuple(state[name].shape) for name in state if name.endswith(".weight")}
    filters = []
    while f"encoder_{len(filters) + 1}_conv_1" in shapes:
        filters.append(shapes[f"encoder_{len(filters) + 1}_conv_1"][0])
    head = next((head for head in HEADS if f"{head}_conv" in shapes), None)
    _, contrasts, *sizes = shapes["encoder_1_conv_1"]
    return {
        "rank": len(sizes),
        "contrasts": contrasts,
        "filters": filters,
        "decoder_levels": sum(f"decoder_{level}_up" in shapes for level in range(1, len(filters))),
        "head": head,
        "outputs": shapes[f"{head}_conv"][0] if head else None,
        "head_block": f"{head}_block_conv_1" in shapes,
    }
