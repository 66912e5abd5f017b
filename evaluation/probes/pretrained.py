"""Networks with pretrained weights, one at a time, for the analysis of their representations."""

import logging

log = logging.getLogger("mrccl")


def filled_networks(pretrained, build, draws, target_contrasts):
    """Yield a description of each network, and the network (always the same one, with new weights).

    Layers that were not pretrained are drawn several times, because representations depend strongly on them.

    Args:
        pretrained: Initialisation -> its `models.weights.Pretrained`; None: random weights.
        build: Function from the number of a draw to a network with random weights.
        draws: Number of draws of untrained layers.
        target_contrasts: Contrasts of the network's input channels; None if it sees them one at a time.

    Yields:
        `{"representation", "draw", "pretrained"}` and the network.
    """
    drawn = [build(draw) for draw in range(draws)]
    network, untrained = drawn[0], [one.get_weights() for one in drawn]
    for init, weights_of_init in pretrained.items():
        parts = "nothing"
        for draw, weights in enumerate(untrained):
            network.set_weights(weights)
            if weights_of_init:
                report = weights_of_init.move_into(network, target_contrasts)
                parts = _describe(report)
            log.info("%s, draw %d, pretrained: %s", init, draw, parts)
            yield {"representation": init, "draw": draw, "pretrained": parts}, network
            if weights_of_init and not report.left:
                break


def _describe(report):
    """Name the parts of the network that hold pretrained weights."""
    moved, left = ({name.split("_")[0] for name in names} for names in (report.moved + report.adapted, report.left))
    return ", ".join(f"part of {part}" if part in left else part for part in ("encoder", "decoder") if part in moved)
