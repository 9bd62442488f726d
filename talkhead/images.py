"""uint8 frames to float images and back, and their sizes."""

import numpy as np
import torch
import torch.nn.functional as F


def to_images(frames):
    """uint8 frames (N, H, W, 3), numpy or torch -> float32 images (N, 3, H, W) in [-1, 1]."""
    frames = torch.from_numpy(np.require(frames, requirements=["C", "W"])) if isinstance(frames, np.ndarray) else frames
    return frames.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_frames(images):
    """float images (N, 3, H, W) in [-1, 1] -> uint8 numpy frames (N, H, W, 3), rounded and clipped."""
    frames = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return frames.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


def resize_images(images, size):
    """Float images (N, 3, H, W) as squares of `size` pixels a side: bilinear, area-averaged when they shrink."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


def resize(frame, size):
    """A square uint8 frame (H, H, 3) at another size; area-averaged when it shrinks."""
    if frame.shape[:2] == (size, size):
        return frame
    return to_frames(resize_images(to_images(frame[None]), size))[0]


def sheet(*rows):
    """Images in rows, one below the other: float (N, 3, H, W) each -> uint8 (rows · H, N · W, 3)."""
    return np.concatenate([np.concatenate(list(to_frames(row)), 1) for row in rows])
