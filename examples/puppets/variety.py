"""What faces differ in, measured and drawn on purpose: tone of skin, hair, light, backdrop.

    aligned face ─ measured ─▶ tone, hair            who is chosen evenly among portraits
    aligned face ─ varied ───▶ face, what was drawn  in another light, before another backdrop

Faces are uint8 (S, S, 3), aligned as FFHQ, with their 68 landmarks in pixels. What is measured is how a picture looks,
not who is in it: light and camera move the tone of skin, and nothing here tells an age.
"""

import colorsys

import numpy as np

from talkhead.errors import TalkheadError

TONES = {"dark": -90, "tan": 10, "intermediate": 28, "light": 41}  # least individual typology angle, degrees
SHADES = {"black": 0, "dark": 45, "medium": 90, "bright": 140}  # least grey level of hair
CHEEKS = [(0.34, 0.60), (0.66, 0.60)]  # of an aligned picture's side, x and y
LIGHTS = {
    "own": None,
    "front": (0.0, 0.0),
    "left": (-1.0, -0.3),
    "right": (1.0, -0.3),
    "above": (0.0, -1.0),
}  # where it comes from, x and y
BACKDROPS = ("own", "plain", "gradient")
PLAIN = 14  # grey levels: a backdrop that strays more from a smooth colour is not taken out
LUMA = (0.299, 0.587, 0.114)


def ramp(x, low, high):
    """0 at low, 1 at high, smooth between; works on arrays and tensors."""
    t = ((x - low) / (high - low)).clip(0, 1)
    return t * t * (3 - 2 * t)


# ---------------------------------------------------------------------------------------------------------------
# Measured


def tone_angle(face):
    """Individual typology angle of the cheeks, degrees: arctan((L* - 50) / b*), below 10 dark, above 41 light.

    Skin that looks bluer than grey (b* < 0), which blue light makes, is -90 or 90 by its lightness alone.

    Source: Chardon et al. 1991.
    """
    colour = np.median(np.concatenate([_patch(face, x, y).reshape(-1, 3) for x, y in CHEEKS]), 0) / 255
    linear = np.where(colour > 0.04045, ((colour + 0.055) / 1.055) ** 2.4, colour / 12.92)
    xyz = (
        np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        @ linear
        / [0.9505, 1.0, 1.089]
    )
    _, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return float(np.degrees(np.arctan2(116 * y - 66, max(200 * (y - z), 1e-6))))


def group(value, groups):
    """The last of the groups, {name: least value}, that a value reaches."""
    return [name for name, least in groups.items() if value >= least][-1]


def hair_shade(face, landmarks):
    """How bright the hair above the forehead is, 0 to 255; of a bald head, the skin there."""
    size = len(face)
    brow, chin = landmarks[17:27, 1].min(), landmarks[8, 1]
    x, y = landmarks[27, 0] / size, (brow - 0.50 * (chin - brow)) / size
    return float(np.median(_patch(face, x, max(y, 0.03)) @ LUMA))


def _patch(face, x, y, half=0.03):
    size = len(face)
    rows, columns = (slice(max(round((at - half) * size), 0), max(round((at + half) * size), 1)) for at in (y, x))
    return face[rows, columns]


# ---------------------------------------------------------------------------------------------------------------
# Drawn


def draw(rng):
    """Light and backdrop by chance, each kind as often as any other: a dict that JSON can hold."""
    kind = str(rng.choice(list(LIGHTS)))
    light = {"from": kind}
    if kind != "own":
        light |= {
            "strength": round(float(rng.uniform(0.3, 1.0)), 3),
            "warmth": round(float(rng.uniform(-1, 1)), 3),
            "exposure": round(float(np.exp(rng.normal(0, 0.1))), 3),
        }
    kind = str(rng.choice(BACKDROPS))
    colours = {"own": 0, "plain": 1, "gradient": 2}[kind]
    backdrop = {"kind": kind, "colours": [_colour(rng) for _ in range(colours)]}
    if kind == "gradient":
        backdrop["angle"] = round(float(rng.uniform(0, 360)), 1)
    return {"light": light, "backdrop": backdrop}


def _colour(rng):
    """A wall's colour: of any hue, seldom a strong one."""
    return [
        round(255 * part) for part in colorsys.hsv_to_rgb(rng.random(), rng.beta(1.2, 3.5), rng.uniform(0.15, 0.95))
    ]


def varied(face, landmarks, rng):
    """A face in another light and before another backdrop.

    face       uint8 (S, S, 3), aligned
    landmarks  (68, 2), pixels
    rng        numpy's, which says what light and what backdrop
    returns    uint8 (S, S, 3), and what was drawn: {"light": {"from", "strength", "warmth", "exposure"}, "backdrop":
               {"kind", "colours", "angle"}}. A backdrop that cannot be told from the person stays, and is called "own"
    """
    chosen = draw(rng)
    picture = face.astype(np.float32)
    behind = backdrop(face, landmarks)
    if behind is None:
        chosen["backdrop"] = {"kind": "own", "colours": []}
    person = 1.0 if behind is None else 1 - behind[1][..., None]
    if chosen["light"]["from"] != "own":
        lit = _lit(
            picture,
            landmarks,
            **{"towards" if name == "from" else name: value for name, value in chosen["light"].items()},
        )
        picture = picture + person * (lit - picture)
    if chosen["backdrop"]["kind"] != "own":
        colour, share = behind
        # What is added is the difference of the two backdrops, so that hair before it keeps its edge and the wall its
        # grain.
        picture = picture + share[..., None] * (_painted(len(face), **chosen["backdrop"]) - colour)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8), chosen


def backdrop(face, landmarks):
    """What lies behind a person before a smooth wall: its colour float32 (S, S, 3) and its share of each pixel (S, S),
    or None.

    The wall is fitted beside the head; what has its colour and hangs together with it is wall.
    """
    from scipy import ndimage

    size = len(face)
    picture = face.astype(np.float32)
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    terms = np.stack([np.ones_like(x), x - 0.5, y, (x - 0.5) ** 2, (x - 0.5) * y, y**2], -1).astype(np.float32)
    beside = ((x < 0.12) | (x > 0.88)) & (y < 0.4) | (y < 0.05)
    wall = beside
    for _ in range(4):  # from beside the head down to the shoulders
        colour, keep, stray = _fitted(terms, picture, wall)
        if keep < 0.6 or stray > PLAIN:
            return None
        near = ndimage.gaussian_filter(np.abs(picture - colour).max(-1), size / 400)
        share = 1 - ramp(near, 6 + 1.5 * stray, 30 + 1.5 * stray)
        parts, _ = ndimage.label(share > 0.3)
        wall = np.isin(parts, np.unique(parts[beside & (parts > 0)])) & (parts > 0)
    joined = ndimage.binary_dilation(wall, iterations=max(size // 100, 1))
    share = ndimage.gaussian_filter(share * joined, size / 500).astype(np.float32)
    # Hair or skin of the wall's own colour would be painted over: leave such a picture alone.
    return (colour, share) if share[_head(landmarks, size)[2] < 0.7].mean() < 0.02 else None


def _fitted(terms, picture, wall):
    """A smooth colour (S, S, 3) through the pixels of a wall.

    Returned with it are the share of pixels that it was fitted to, and how far those stray from it.
    """
    wanted, known = picture[wall], terms[wall]
    keep = np.ones(len(known), bool)
    for _ in range(4):
        fit = np.linalg.solve(
            known[keep].T @ known[keep] + 1e-3 * np.eye(known.shape[1], dtype=np.float32), known[keep].T @ wanted[keep]
        )
        away = np.abs(known @ fit - wanted).max(1)
        keep = away <= max(2.5 * np.median(away), 4)
    return np.clip(terms @ fit, 0, 255), keep.mean(), float(away[keep].std() + away[keep].mean())


def _head(landmarks, size):
    """How a head is turned to the light, as if it were an egg: (x, y, r) of (S, S), r being 1 on its rim."""
    brow, chin = landmarks[17:27, 1].mean(), landmarks[8, 1]
    left, right = landmarks[0:3, 0].mean(), landmarks[14:17, 0].mean()
    top = brow - 0.65 * (chin - brow)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    across, down = (x - (left + right) / 2) / (0.55 * (right - left)), (y - (top + chin) / 2) / (0.55 * (chin - top))
    return across, down, np.hypot(across, down)


def _lit(picture, landmarks, towards, strength, warmth, exposure):
    """The picture as if a lamp were there too: brighter where the head turns towards it, darker where it turns away."""
    from scipy import ndimage

    size = len(picture)
    across, down, radius = _head(landmarks, size)
    inside = np.minimum(radius, 0.95) / np.maximum(radius, 1e-6)
    normal = np.stack([across * inside, down * inside, np.sqrt(1 - np.minimum(radius, 0.95) ** 2)])
    lamp = np.array([*LIGHTS[towards], 0.7])
    facing = np.tensordot(lamp / np.linalg.norm(lamp), normal, 1)
    facing = ndimage.gaussian_filter(facing - facing[radius < 0.8].mean(), 0.04 * size)
    gain = (
        exposure
        * np.clip(1 + 1.6 * strength * facing, 0.2, 2.2)[..., None]
        * (1 + 0.12 * warmth, 1.0, 1 - 0.12 * warmth)
    )
    linear = (picture / 255) ** 2.2 * gain
    # Bright skin would burn out: what comes near to white is bent down to it.
    linear = np.where(linear > 0.6, 0.6 + 0.4 * np.tanh((linear - 0.6) / 0.4), linear)
    return (255 * linear ** (1 / 2.2)).astype(np.float32)


def _painted(size, kind, colours, angle=0.0):
    """A wall: (S, S, 3) or (3,)."""
    if kind == "plain":
        return np.float32(colours[0])
    y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
    along = np.clip(0.5 + x * np.cos(np.radians(angle)) + y * np.sin(np.radians(angle)), 0, 1)[..., None]
    return np.float32(colours[0]) * (1 - along) + np.float32(colours[1]) * along


# ---------------------------------------------------------------------------------------------------------------
# Counted


def tally(choices):
    """How often each kind was chosen, from the "varied" parts of clips' JSON files: {"tone": {"dark": 3, …}, …}.

    raises   TalkheadError if there are none
    """
    counted = {}
    for chosen in choices:
        warmth = chosen["light"].get("warmth")
        kinds = {
            "tone": chosen["tone"],
            "hair": chosen["hair"],
            "hair shade": chosen["hair_shade"],
            "light": chosen["light"]["from"],
            "warmth": "own"
            if warmth is None
            else "cool"
            if warmth < -1 / 3
            else "warm"
            if warmth > 1 / 3
            else "neutral",
            "backdrop": chosen["backdrop"]["kind"],
        }
        for what, kind in kinds.items():
            counts = counted.setdefault(what, {})
            counts[kind] = counts.get(kind, 0) + 1
    if not counted:
        raise TalkheadError("clips: none tells what was varied in it; make them with synth.py --vary")
    return counted
