"""Several networks and mirrored images combined into one network."""

import itertools

import numpy as np


class Ensemble:
    """The mean of the predictions of networks for an image and its mirror images.

    Args:
        networks: Objects with Keras' `predict_on_batch`, all with the same input and output shape: `(B, H, W[, D], C)`
            to `(B, H, W[, D], K)`.
        flips: Axes of the batch, such as 1 for H. The image is predicted unchanged and mirrored along every combination
            of them, and each prediction is mirrored back: 2 predictions per network for one axis, 4 for two.

    Reference:
        Isensee et al., Nat. Methods 2021 (nnU-Net): mirroring along all combinations of axes.
    """

    def __init__(self, networks, flips=()):
        self.networks = list(networks)
        counts = range(len(flips) + 1)
        self.mirrored_axes = [axes for count in counts for axes in itertools.combinations(sorted(flips), count)]

    def predict_on_batch(self, images):
        """Predict one batch, float32."""
        total = 0.0
        for axes in self.mirrored_axes:
            mirrored = np.ascontiguousarray(np.flip(images, axes))
            for network in self.networks:
                total = total + np.flip(np.asarray(network.predict_on_batch(mirrored), np.float32), axes)
        return total / np.float32(len(self.mirrored_axes) * len(self.networks))
