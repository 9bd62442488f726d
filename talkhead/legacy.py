"""Names in weight files of version 0.1, and those that replaced them."""

from typing import Any

TENSORS = {
    "feature_spread": "feature_std",
    "identity_spread": "identity_std",
    "motion_spread": "motion_std",
    "reach": "motion_scale",
}
SETTINGS = {
    "at_rest": "converged",
    "augment_images": "ada_images",
    "augment_target": "ada_target",
    "average": "ema_decay",
    "average_images": "ema_half_life",
    "cool_down": "lr_decay",
    "critic": "discriminator",
    "critic_lr": "d_lr",
    "critic_size": "d_size",
    "critics": "discriminators",
    "exploration": "w_noise",
    "heard": "window_shape",
    "image_critic": "image_discriminator",
    "least_gain": "min_delta",
    "noise_draws": "best_of_n",
    "path_every": "pl_interval",
    "path_length": "pl_weight",
    "path_mean": "pl_mean",
    "pti_frames": "tuning_frames",
    "pti_steps": "tuning_steps",
    "r1_every": "r1_interval",
    "warm_up": "burn_in",
}


def renamed(tree: Any, names: dict[str, str] = TENSORS | SETTINGS) -> Any:
    """Weights and settings with the present names for the keys of its dicts, at every depth.

    Other values are unchanged.
    """
    if not isinstance(tree, dict):
        return tree
    return {_renamed(key, value, names): renamed(value, names) for key, value in tree.items()}


def _renamed(key, value, names):
    if key == "features" and type(value) is int:  # a width of the second model, not the features that it takes
        return "embedding"
    return names.get(key, key) if isinstance(key, str) else key
