"""Conversion between uint8 frames and float images, and resizing."""

import numpy as np
import torch
import torch.nn.functional as F


def to_images(frames: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Convert uint8 frames (N, H, W, 3), numpy or torch, to float32 images (N, 3, H, W) in [-1, 1]."""
    frames = torch.from_numpy(np.require(frames, requirements=["C", "W"])) if isinstance(frames, np.ndarray) else frames
    return frames.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_frames(images: torch.Tensor) -> np.ndarray:
    """Convert float images (N, 3, H, W) in [-1, 1] to uint8 numpy frames (N, H, W, 3), rounded and clipped."""
    frames = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return frames.permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


def resize_images(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize float images (N, 3, H, W) to squares of `size` pixels: bilinear, antialiased when shrinking."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


def resize(frame: np.ndarray, size: int) -> np.ndarray:
    """Resize a square uint8 frame (H, H, 3) to `size` pixels: bilinear, antialiased when shrinking."""
    if frame.shape[:2] == (size, size):
        return frame
    return to_frames(resize_images(to_images(frame[None]), size))[0]


def sheet(*rows: torch.Tensor) -> np.ndarray:
    """Contact sheet uint8 (rows · H, N · W, 3) of rows of images, float (N, 3, H, W) each."""
    return np.concatenate([np.concatenate(list(to_frames(row)), 1) for row in rows])
