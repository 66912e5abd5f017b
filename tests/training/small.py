"""What small trainings share."""

from training.pretraining import pretrain_constrained

FILTERS = [4, 8]
RUN = {"warm_start": lambda network: None, "tag": "hash", "name": "test", "seed": 1, "filters": FILTERS, "features": 8}
LOSS = {"temperature": 0.1, "nearest_patches": 20, "comparison": "pairwise", "anchor_is_positive": True}


def settings(epochs=3, steps=4, rate=1e-2):
    return {
        "epochs": epochs,
        "steps_per_epoch": steps,
        "batch_size": 4,
        "learning_rate": rate,
        "plateau_epochs": 2,
        "mixed_precision": False,
    }


def constrained(slices, folder, *, training, decoder_levels=None, patch_size=4, **changes):
    images, maps = slices
    settings_of = {"decoder_levels": decoder_levels, "patch_size": patch_size, "anchors_per_slice": 5}
    settings_of |= {"loss_settings": LOSS, "training": training, "folder": folder}
    return pretrain_constrained(images, maps, images[:6], maps[:6], **(settings_of | RUN | changes))
