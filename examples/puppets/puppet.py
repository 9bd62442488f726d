"""A still face that talks: frames with known landmarks, mouth and blinks, made instead of collected.

    portraits ─ composite ─┐
                           ├─▶ Still ─ perform(track) ─▶ frames, landmarks ─ synth ─▶ clips
    seed ────── drawn ─────┘

A still is warped by a sum of smooth motion fields (jaw, lips, corners, brows, head), each fixed to the face once and
weighted per frame. The lips are a tear in the field, so there is one field for what lies above the mouth and one for
what lies below; between the lips the mouth's inside is painted. Whatever the weights, the landmarks move by the very
same fields, so the truth is exact.

Coordinates inside this room are fractions of the image side, (0, 0) its top left corner; landmarks handed out are
pixels as in `faces`, (0, 0) the centre of the top left pixel.
"""

import csv
import json
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from puppets import articulation, variety
from puppets.variety import ramp
from talkhead import audio_files, faces, files, image_files, video_files
from talkhead.errors import TalkheadError
from talkhead.landmarks import MEDIAPIPE_68, detector, from_mesh, mouth_opening

GRID = 64  # nodes per side of a motion field
CHUNK = 16  # frames rendered together
FRONTAL = 0.45  # largest |log ratio| of the two half faces that still counts as frontal
SMALLEST_EYES = 45  # pixels between the eyes that a donor needs
RIMS = 4.5  # strength of edges around the eyes from which glasses are suspected
LONG = 30  # grey levels between the backdrop and what is beside the jaw, from which hair is long
SHUT = 0.03  # largest inner-lip gap / inter-ocular distance of a donor of mouths
CALM = 0.82  # a mouth that smiles no more is as good as neutral; see Still.smile
SMILING = 0.1  # by so much more, it is as bad a match as other skin is

# Vertices of MediaPipe's mesh, left of the picture first.
UPPER_OUTER = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
LOWER_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
UPPER_INNER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
OVAL = (
    10,
    338,
    297,
    332,
    284,
    251,
    389,
    356,
    454,
    323,
    361,
    288,
    397,
    365,
    379,
    378,
    400,
    377,
    152,
    148,
    176,
    149,
    150,
    136,
    172,
    58,
    132,
    93,
    234,
    127,
    162,
    21,
    54,
    103,
    67,
    109,
)
UPPER_LIDS = ((33, 246, 161, 160, 159, 158, 157, 173, 133), (362, 398, 384, 385, 386, 387, 388, 466, 263))
LOWER_LIDS = ((33, 7, 163, 144, 145, 153, 154, 155, 133), (362, 382, 381, 380, 374, 373, 390, 249, 263))
BROWS = ((70, 63, 105, 66, 107, 46, 53, 52, 65, 55), (336, 296, 334, 293, 300, 285, 295, 282, 283, 276))
NOSE = (168, 6, 197, 195, 5, 4, 1, 2, 98, 97, 326, 327, 129, 358, 64, 294, 48, 278, 45, 275, 75, 305, 164)
CHEEKS = (50, 280, 205, 425, 187, 411, 117, 346, 101, 330, 203, 423, 206, 426, 212, 432, 214, 434, 135, 364, 216, 436)
CHIN = (18, 200, 199, 175, 83, 313, 201, 421, 204, 424, 194, 418, 215, 435)
FOREHEAD = (151, 9, 8, 108, 337, 69, 299, 104, 333)
IRISES = (468, 469, 470, 471, 472, 473, 474, 475, 476, 477)
LAYOUT = np.unique(
    np.concatenate(
        [
            UPPER_OUTER,
            LOWER_OUTER,
            UPPER_INNER,
            LOWER_INNER,
            OVAL,
            *UPPER_LIDS,
            *LOWER_LIDS,
            *BROWS,
            NOSE,
            CHEEKS,
            CHIN,
            FOREHEAD,
            IRISES,
            MEDIAPIPE_68.ravel(),
        ]
    )
)
_PLACE = np.full(478, -1)
_PLACE[LAYOUT] = np.arange(len(LAYOUT))


def _of(*vertices):
    """Where these mesh vertices stand in the layout of a still's points."""
    return _PLACE[np.array(vertices).squeeze()]


_IN_68 = _PLACE[MEDIAPIPE_68]  # (68, 2)
_UPPER_LIP = _of(UPPER_OUTER[1:-1] + UPPER_INNER[1:-1])
_LOWER_LIP = _of(LOWER_OUTER[1:-1] + LOWER_INNER[1:-1])


@dataclass
class Still:
    """A face that can talk: an FFHQ-aligned picture and where its parts are.

    image   uint8 (S, S, 3)
    points  float32 (len(LAYOUT), 2), fractions of the side: the vertices LAYOUT of MediaPipe's face mesh
    names   the donors it was made of, the first gave hair, clothes and backdrop
    people  who they are, one id for each name: two photos may show one person
    ita     individual typology angle of the skin, degrees, where somebody measured it; None measures it on the picture
    """

    image: np.ndarray
    points: np.ndarray
    names: tuple = ()
    people: tuple = ()
    ita: float = None
    looks: np.ndarray = field(default=None, repr=False)  # of portraits: see _looks
    glasses: bool = False
    varied: dict = None  # what was chosen on purpose: see `synth`

    @property
    def landmarks(self):
        """The 68 points in pixels, float32 (68, 2)."""
        return self.points[_IN_68].mean(1) * len(self.image) - 0.5

    @cached_property
    def opening(self):
        return float(mouth_opening(self.landmarks))

    @cached_property
    def smile(self):
        """How wide the mouth is, and twice how far its corners are above its middle, by the distance between the eyes.

        Of 102 people of the Face Research Lab's London set, the median is 0.74 with a neutral face and 1.02 with a
        smile.
        """
        corners, middle = self.points[_of(61, 291)], self.points[_of(13, 14)].mean(0)
        return float(
            (np.linalg.norm(corners[1] - corners[0]) + 2 * (middle[1] - corners[:, 1].mean())) / _iod(self.points)
        )

    @cached_property
    def tone_angle(self):
        return variety.tone_angle(self.image) if self.ita is None else self.ita

    @property
    def tone(self):
        return variety.group(self.tone_angle, variety.TONES)

    @property
    def hair(self):
        return "long" if 15 * self.looks[5] >= LONG else "short"


# ---------------------------------------------------------------------------------------------------------------
# Splines: a smooth displacement through scattered points


def _kernel(at, points):
    square = (at**2).sum(1)[:, None] + (points**2).sum(1) - 2 * at @ points.T
    square = np.maximum(square, 1e-12).astype(np.float32)  # the logarithm is what takes the time
    return square * np.log(square)


def _affine(points):
    return np.concatenate([np.ones((len(points), 1)), points], 1)


def _nodes(size):
    """Centres of a size x size grid over the unit square: (size*size, 2), x then y, row by row."""
    middle = (np.arange(size) + 0.5) / size
    return np.stack(np.meshgrid(middle, middle), -1).reshape(-1, 2)


def _spline(points, values, size, smoothing=1e-5):
    """Thin-plate spline through values at points, on a grid: (N, 2), (N, C) -> float32 (C, size, size)."""
    points, values = np.asarray(points, np.float64), np.asarray(values, np.float64)
    count = len(points)
    matrix = np.zeros((count + 3, count + 3))
    matrix[:count, :count] = _kernel(points, points) + smoothing * np.eye(count)
    matrix[:count, count:] = _affine(points)
    matrix[count:, :count] = matrix[:count, count:].T
    weights = np.linalg.solve(matrix, np.concatenate([values, np.zeros((3, values.shape[1]))]))
    nodes = _nodes(size)
    field_ = _kernel(nodes, points) @ weights[:count] + _affine(nodes) @ weights[count:]
    return np.ascontiguousarray(field_.T.reshape(-1, size, size), np.float32)


def _border(count=7):
    """Points around the unit square, which no warp moves."""
    line = np.linspace(0, 1, count)
    square = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    return square[((square == 0) | (square == 1)).any(1)]


def _sample(images, at):
    """Pictures (N, C, h, w) at points (N, H, W, 2) given in fractions of the side, bilinear."""
    return F.grid_sample(images, at * 2 - 1, mode="bilinear", padding_mode="reflection", align_corners=False)


def _positions(size):
    return torch.from_numpy(_nodes(size).astype(np.float32).reshape(size, size, 2))


# ---------------------------------------------------------------------------------------------------------------
# Portraits: photos of faces, aligned and marked


def portraits(folders, model=None, size=256, cache=None, exclude=()):
    """Photos of frontal faces as stills: aligned as `faces.align` does, marked by MediaPipe.

    folders  one or several; they hold the pictures (.jpg, .jpeg, .png). A table SOURCES.tsv in a folder, or beside it,
             may tell who is who: its column "file" holds places relative to the table, "person_id" the people, and
             "ITA", if it is there, the tone of their skin in degrees. A picture that no table has shows the person
             whose id is its name, such as "x:K000378" for K000378.jpg, or else somebody of its own
    model    MediaPipe's face landmarker (.task); None looks for it where `landmarks.detector` does
    cache    .npz that keeps the aligned pictures and their points, so that detection runs once
    exclude  who is left out: file stems, or ids of people, with or without what stands before their colon
    returns  list of Still, folder by folder, sorted by name; turned and small faces are left out

    raises   TalkheadError if the folders hold no usable face, two of their pictures have one name, or a table is not
             one
    """
    folders = [folders] if isinstance(folders, (str, Path)) else list(folders)
    paths = [path for folder in folders for path in _pictures(folder)]
    if not paths:
        raise TalkheadError(f"{folders[0]}: holds no pictures; pass a folder of portrait photos (.jpg, .jpeg, .png)")
    about = _about(folders, paths)
    found = _read_cache(cache, paths, size)
    if found is None:
        found = list(_detect_portraits(paths, model, size))
        if cache is not None and found:
            with files.atomic(cache) as temporary, open(temporary, "wb") as stream:
                np.savez(
                    stream,
                    images=[still.image for still in found],
                    points=[still.points for still in found],
                    names=[still.names[0] for still in found],
                    of=_described(paths, size),
                )
    found = [replace(still, **about[still.names[0]]) for still in found]
    found = [still for still in found if not shows(still, exclude)]
    if not found:
        raise TalkheadError(
            f"{folders[0]}: no frontal face of at least {SMALLEST_EYES} pixels between the eyes; "
            "pass a folder of portrait photos"
        )
    for still in found:
        still.looks = _looks(still)
        still.glasses = _wears_glasses(still)
    return found


def _pictures(folder):
    if not Path(folder).is_dir():
        raise TalkheadError(f"{folder}: no such folder; pass a folder of portrait photos")
    return files.find(folder, {".jpg", ".jpeg", ".png"})


def shows(still, people):
    """True if a portrait is of one of some people.

    They are named by file stems, or ids, with or without what stands before their colon.
    """
    return not {*still.names, *map(_bare, still.people)}.isdisjoint(map(_bare, people))


def _bare(person):
    """The id of a person without what stands before its colon: who is the same in every collection."""
    return person.rpartition(":")[2]


def _about(folders, paths):
    """Who the pictures show, and the tone of their skin where it is known: {stem: {"people", "ita"}}."""
    told = {}  # {path: (id, ita)}, of all tables
    places = [Path(folder).resolve() for folder in folders]
    for table in sorted({place / "SOURCES.tsv" for folder in places for place in (folder, folder.parent)}):
        if table.is_file():
            told |= _read_people(table)
    known = {_bare(person): person for person, _ in told.values()}
    about = {}
    for path in paths:
        if path.stem in about:
            raise TalkheadError(f"{path}: another folder has a picture of that name; rename one of them")
        person, ita = told.get(path.parent.resolve() / path.name, (known.get(path.stem, path.stem), None))
        about[path.stem] = {"people": (person,), "ita": ita}
    return about


def _read_people(table):
    try:
        with open(table, encoding="utf-8", newline="") as stream:
            return {
                table.parent / row["file"]: (row["person_id"], float(row["ITA"]) if row.get("ITA") else None)
                for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            }
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise TalkheadError(
            f'{table}: not a table of sources ({problem}); it needs columns "file" and "person_id", with tabs between'
        ) from None


def _described(paths, size):
    """What a cache was made of."""
    return [str(size), *(f"{path.parent.name}/{path.name} {path.stat().st_size}" for path in paths)]


def _read_cache(cache, paths, size):
    """The stills of a cache, or None if it is absent or of other pictures."""
    if cache is None or not Path(cache).is_file():
        return None
    with np.load(cache) as kept:
        if list(kept["of"]) != _described(paths, size):
            return None
        return [
            Still(image, points, (str(name),))
            for image, points, name in zip(kept["images"], kept["points"], kept["names"])
        ]


def _detect_portraits(paths, model, size):
    meshes_of = detector("mediapipe", model).meshes
    for path in paths:
        image = image_files.read_image(path)
        mesh = max(meshes_of(image), key=lambda found: np.ptp(found, 0).prod(), default=None)
        if mesh is None:
            continue
        landmarks = from_mesh(mesh)
        eyes = landmarks[42:48].mean(0) - landmarks[36:42].mean(0)
        halves = [np.linalg.norm(mesh[1] - mesh[side]) for side in (234, 454)]
        if np.hypot(*eyes) < SMALLEST_EYES or abs(np.log(halves[0] / halves[1])) > FRONTAL:
            continue
        quad = faces.quad(landmarks)
        basis = np.stack([quad[3] - quad[0], quad[1] - quad[0]])
        points = (mesh[LAYOUT] - quad[0]) @ np.linalg.inv(basis)
        yield Still(faces.crop(image, quad, size), points.astype(np.float32), (path.stem,))


def _looks(still):
    """What makes portraits alike, in numbers of comparable size: skin tone (3), beard, lipstick, long hair (6,)."""
    points = still.points
    image = F.avg_pool2d(torch.tensor(still.image).permute(2, 0, 1)[None].float(), 5, 1, 2)

    def tone(places):
        at = torch.from_numpy(np.asarray(places, np.float32))[None, None]
        return _sample(image, at)[0, :, 0].median(1).values.numpy()

    cheek = tone(points[_of(50, 280, 101, 330, 205, 425, 117, 346)])
    chin, lips = tone(points[_of(199, 175, 204, 424, 214, 434)]), tone(points[_of(17, 84, 314)])
    level = cheek.mean()
    outwards = (points[_of(361)] - points[_of(132)]) * 0.22
    beside = [tone([place]) for place in (points[_of(361)] + outwards, points[_of(132)] - outwards)]
    backdrop = tone([(0.04, 0.1), (0.96, 0.1), (0.04, 0.25), (0.96, 0.25)])
    hair = min(np.abs(colour - backdrop).max() for colour in beside)
    redness = [(colour[0] - colour[1]) / (colour[0] + colour[1] + 1) for colour in (lips, cheek)]
    return np.array(
        [
            level / 14,
            (cheek[0] - cheek[1]) / 5,
            (cheek[1] - cheek[2]) / 5,
            (level - chin.mean()) / 12,
            (redness[0] - redness[1]) / 0.05,
            min(hair, 60) / 15,
        ]
    )


def _wears_glasses(still):
    """Whether rims show: edges that cross the skin below the eyes, the root of the nose and the temples."""
    points, iod = still.points, _iod(still.points)
    image = torch.tensor(still.image).float().mean(2)[None, None]
    image = F.avg_pool2d(image, 3, 1, 1)

    def steepest(starts, heights):
        at = starts[:, None] + np.stack([np.zeros_like(heights), heights], -1) * iod  # (K, H, 2)
        values = _sample(image, torch.from_numpy(at[None].astype(np.float32)))[0, 0].numpy()
        return np.median(np.abs(np.diff(values, axis=1)).max(1))

    below = np.mean([steepest(points[_of(*lid[2:-2])], np.linspace(0.12, 0.5, 24)) for lid in LOWER_LIDS])
    root = (points[_of(133)] + points[_of(362)]) / 2 + np.linspace(-0.06, 0.06, 5)[:, None] * (iod, 0)
    sides = [
        points[_of(eye)] * (1 - t) + points[_of(ear)] * t
        for eye, ear in ((33, 127), (263, 356))
        for t in (0.45, 0.6, 0.75)
    ]
    edges = np.array(
        [below, steepest(root, np.linspace(-0.28, 0.28, 34)), steepest(np.array(sides), np.linspace(-0.25, 0.2, 28))]
    )
    # Against the medians over many portraits; one very strong edge alone is a fringe or a deep wrinkle.
    level = max(14 * still.looks[0], 110.0)
    return (np.minimum(edges / level / (0.078, 0.031, 0.037), 3) * (1, 1, 0.5)).sum() > RIMS


def mirror(still):
    """The same face seen in a mirror."""
    points = still.points[_MIRRORED] * (-1, 1) + (1, 0)
    return replace(still, image=np.ascontiguousarray(still.image[:, ::-1]), points=points.astype(np.float32))


def _mirrored():
    """Which point of the layout becomes which in a mirror."""
    pairs = dict(zip(OVAL, (OVAL[:1] + OVAL[:0:-1])))
    for line in (UPPER_OUTER, LOWER_OUTER, UPPER_INNER, LOWER_INNER):
        pairs.update(zip(line, line[::-1]))
    for left, right in (UPPER_LIDS, LOWER_LIDS):
        pairs.update(zip(left, right[::-1]))
        pairs.update(zip(right[::-1], left))
    for pair in _mirrored_pairs():
        pairs.update((pair, pair[::-1]))
    return _PLACE[[pairs.get(vertex, vertex) for vertex in LAYOUT]]


def _mirrored_pairs():
    yield from zip(BROWS[0], (300, 293, 334, 296, 336, 276, 283, 282, 295, 285))
    for group in (CHEEKS, CHIN[4:], FOREHEAD[3:]):
        yield from zip(group[::2], group[1::2])
    yield from ((98, 327), (97, 326), (129, 358), (64, 294), (48, 278), (45, 275), (75, 305))
    yield from ((468, 473), (469, 476), (470, 475), (471, 474), (472, 477))


_MIRRORED = _mirrored()


# ---------------------------------------------------------------------------------------------------------------
# Composites: a face that is nobody's


def choose(stills, rng, first=None):
    """Pick three or four portraits of as many people that may be blended, two where there are no more: the first of any
    kind (or the one given), the last with its mouth shut.

    Skin tones, beards, make-up and hair are alike, or blending would leave a mask. Neutral mouths come before smiling
    ones.

    raises   TalkheadError if all portraits show one person
    """
    first = stills[rng.integers(len(stills))] if first is None else first

    def alike(pool, count, *others, mouths=False):
        shown = {person for still in (first, *others) for person in still.people}
        pool = [still for still in pool if not shown & set(still.people)]
        if not pool:
            return []
        distance = np.array([((still.looks - first.looks) ** 2).sum() for still in pool])
        if mouths:
            distance += [(max(still.smile - CALM, 0) / SMILING) ** 2 for still in pool]
        chance = np.exp(-0.5 * (distance - distance.min())) + 1e-9
        picked = rng.choice(len(pool), min(count, len(pool)), replace=False, p=chance / chance.sum())
        return list({pool[index].people: pool[index] for index in picked}.values())

    if all(still.people == first.people for still in stills):
        raise TalkheadError(
            f"portraits: all show one person ({first.people[0]}), and a composite blends two; pass photos of more "
            "people"
        )
    least = sorted(stills, key=lambda still: still.opening)
    pools = [still for still in stills if still.opening < SHUT], least[: max(2, len(stills) // 8)], least
    (mouth,) = alike(
        next(pool for pool in pools if any(still.people != first.people for still in pool)), 1, mouths=True
    )
    bare = [still for still in stills if not still.glasses]
    return [first, *alike(bare, int(rng.integers(1, 3)), mouth), mouth]


def evenly(stills, rng):
    """Pick a portrait so that every tone of skin comes as often as any other, and rare hair oftener than it is there.

    Hair goes by the square root of how many wear it: evenly, the few of a rare tone with rare hair would be seen all
    the time.
    """
    pool = stills
    for kind, power in (("tone", 0.0), ("hair", 0.5)):
        kinds = np.array([getattr(still, kind) for still in pool])
        names, counts = np.unique(kinds, return_counts=True)
        wanted = rng.choice(names, p=counts**power / (counts**power).sum())
        pool = [pool[index] for index in np.flatnonzero(kinds == wanted)]
    people = {}  # who has more photos does not come oftener
    for still in pool:
        people.setdefault(still.people, []).append(still)
    photos = list(people.values())[rng.integers(len(people))]
    return photos[rng.integers(len(photos))]


def relit(still, rng):
    """A composite in another light and before another backdrop.

    The result's `varied` tells both, its tone of skin and its hair.
    """
    image, chosen = variety.varied(still.image, still.landmarks, rng)
    shade = variety.group(variety.hair_shade(still.image, still.landmarks), variety.SHADES)
    told = {"tone": still.tone, "tone_angle": round(still.tone_angle, 1), "hair": still.hair, "hair_shade": shade}
    return replace(still, image=image, varied=told | chosen)


def composite(stills, seed=0):
    """Blend portraits into one new face.

    stills   2 to 4; the first gives hair, clothes and backdrop, the last gives the mouth and should have it shut
    returns  Still, aligned again
    """
    rng = np.random.default_rng(seed)
    size = len(stills[0].image)
    stills = [mirror(still) if rng.random() < 0.5 else still for still in stills]
    points = _blend_shape(stills, rng)
    warped = _warp_all(stills, points)  # (D, 3, S, S)
    regions = _regions(points, size)
    warped = _match_tone(warped, regions["skin"])
    bare = [index for index, still in enumerate(stills[:-1]) if not still.glasses]
    # Rims stay on the face that wears them. Eyes, nose and mouth are of different people where there are so many, or
    # all would be somebody's.
    eyes = 0 if stills[0].glasses else rng.choice(bare)
    nose = rng.choice([index for index in bare if index != eyes] or [len(stills) - 1])
    image = _blend_bands(warped, regions, eyes, nose, rng)
    image = image.clamp(0, 255).permute(1, 2, 0).round().byte().numpy()
    return Still(
        image,
        points,
        tuple(name for still in stills for name in still.names),
        tuple(person for still in stills for person in still.people),
        looks=stills[0].looks,
    )


def _blend_shape(stills, rng):
    """The weighted mean of the shapes, its mouth mostly the last's, brought back to FFHQ's alignment."""
    weights = rng.dirichlet([3.0] * len(stills))
    mean = sum(weight * still.points for weight, still in zip(weights, stills))
    lips = np.concatenate([_UPPER_LIP, _LOWER_LIP, _of(61, 291, 78, 308)])
    mouth = stills[-1].points
    centre = 0.5 * (mean[lips].mean(0) + mouth[lips].mean(0))
    mean[lips] = 0.9 * (mouth[lips] - mouth[lips].mean(0)) + 0.1 * (mean[lips] - mean[lips].mean(0)) + centre
    return _align_points(mean)


def _warp_all(stills, points):
    border = _border()
    shifts = [np.concatenate([still.points - points, np.zeros_like(border)]) for still in stills]
    fields = _spline(np.concatenate([points, border]), np.concatenate(shifts, 1), 48, smoothing=1e-4)
    size = len(stills[0].image)
    shift = F.interpolate(torch.from_numpy(fields).reshape(len(stills), 2, 48, 48), size=(size, size), mode="bilinear")
    images = torch.from_numpy(np.stack([still.image for still in stills])).permute(0, 3, 1, 2).float()
    return _sample(images, _positions(size) + shift.permute(0, 2, 3, 1))


def _inside(polygon, size, reach=1.0):
    """Signed distance to a polygon, positive inside, of the pixels of a size x size picture.

    Beyond `reach` outside the polygon's box it is only said to be far: -1.
    """
    low = np.clip(((polygon.min(0) - reach) * size).astype(int), 0, size)
    high = np.clip(((polygon.max(0) + reach) * size).astype(int) + 1, 0, size)
    whole = np.full((size, size), -1.0)
    box = whole[low[1] : high[1], low[0] : high[0]]
    at = _nodes(size).reshape(size, size, 2)[low[1] : high[1], low[0] : high[0]].reshape(-1, 2)
    distance, odd = np.full(len(at), np.inf), np.zeros(len(at), bool)
    for start, stop in zip(polygon, np.roll(polygon, -1, 0)):
        along, there = stop - start, at - start
        t = np.clip(there @ along / max(along @ along, 1e-12), 0, 1)
        distance = np.minimum(distance, (there[:, 0] - t * along[0]) ** 2 + (there[:, 1] - t * along[1]) ** 2)
        if start[1] != stop[1]:
            crosses = (start[1] > at[:, 1]) != (stop[1] > at[:, 1])
            odd ^= crosses & (there[:, 0] < along[0] / along[1] * there[:, 1])
    box[:] = np.where(odd, 1, -1).reshape(box.shape) * np.sqrt(distance).reshape(box.shape)
    return whole


def _regions(points, size):
    """Soft masks (size, size) of the parts of a face, as tensors."""
    iod = _iod(points)
    oval = _inside(points[_of(*OVAL)].astype(np.float64), 64) / iod
    x, y = _nodes(64).reshape(64, 64, 2).transpose(2, 0, 1)
    brow = points[_of(*BROWS[0], *BROWS[1])][:, 1].min()
    eye = points[_of(*UPPER_LIDS[0], *UPPER_LIDS[1])][:, 1].mean()
    nose, base = points[_of(168)], points[_of(2)]
    lip = points[_of(0)][1]
    face = ramp(oval, 0.02, 0.22)
    below_brow = ramp(y, brow - 0.16 * iod, brow - 0.02 * iod)
    lower = ramp(y + 0.25 * np.abs(x - base[0]), base[1], 0.45 * base[1] + 0.55 * lip + 0.02)
    nose_mask = np.exp(-(((x - nose[0]) / (0.28 * iod)) ** 4)) * ramp(y, eye, eye + 0.3 * iod) * (1 - lower)
    eyes = face * below_brow * (1 - ramp(y, eye + 0.22 * iod, eye + 0.5 * iod))
    skin = (oval > 0.1) * ramp(y, eye + 0.25 * iod, eye + 0.35 * iod) * (y < nose[1] + 1.0 * iod)
    masks = {"face": face * below_brow, "lower": face * lower, "nose": face * nose_mask, "eyes": eyes, "skin": skin}
    return {
        name: F.interpolate(torch.from_numpy(mask.astype(np.float32))[None, None], size=(size, size), mode="bilinear")[
            0, 0
        ]
        for name, mask in masks.items()
    }


_OPPONENT = torch.tensor([[0.299, 0.587, 0.114], [0.701, -0.587, -0.114], [-0.299, -0.587, 0.886]])


def _match_tone(images, skin):
    """Give every face the skin colour and contrast of the first."""
    colours = torch.einsum("ij,njhw->nihw", _OPPONENT, images)
    weight = skin / skin.sum()
    mean = (colours * weight).sum((2, 3), keepdim=True)
    spread = ((colours - mean) ** 2 * weight).sum((2, 3), keepdim=True).sqrt()
    gain = (spread[:1] / spread.clamp(min=1)).clamp(0.75, 1.3).sqrt()
    matched = (colours - mean) * gain + mean[:1]
    return torch.einsum("ij,njhw->nihw", torch.linalg.inv(_OPPONENT), matched)


def _low_band(images, mask):
    """What is left of a face when only shading remains; hair and backdrop do not leak in."""
    coarse = torch.stack([*(images * mask).unbind(1), mask.expand(len(images), -1, -1)], 1)
    coarse = F.interpolate(coarse, size=(32, 32), mode="area")
    blur = torch.exp(-0.5 * (torch.arange(-5, 6) / 2.2) ** 2)
    blur = blur / blur.sum()
    coarse = F.conv2d(coarse.flatten(0, 1)[:, None], blur.view(1, 1, 1, -1), padding=(0, 5))
    coarse = F.conv2d(coarse, blur.view(1, 1, -1, 1), padding=(5, 0)).view(len(images), 4, 32, 32)
    coarse = coarse[:, :3] / (coarse[:, 3:] + 1e-3)
    return F.interpolate(coarse, size=images.shape[2:], mode="bilinear")


def _blend_bands(images, regions, eyes, nose, rng):
    """Each part of the face from one portrait, sharp; shading from all of them, mixed softly.

    Averaging pixels would smooth the skin and let a fringe or glasses of one shine through the other.
    """
    shade = _low_band(images, (regions["face"] > 0.3).float())
    detail = images - shade
    common = torch.from_numpy(rng.dirichlet([2.0] * len(images)).astype(np.float32))
    common = torch.einsum("n,nchw->chw", common, shade)
    face = regions["face"]
    shading = shade[0] + face * 0.6 * (common - shade[0])
    shading = shading + regions["lower"] * 0.6 * (shade[-1] - shading)
    fine = detail[0]
    for mask, owner in ((regions["eyes"], eyes), (regions["nose"], nose), (regions["lower"], -1)):
        fine = fine + mask * (detail[owner] - fine)
    return shading + fine


# ---------------------------------------------------------------------------------------------------------------
# Drawn faces: no data needed


def drawn(seed=0, size=256):
    """Draw a face from nothing but a seed: skin, hair, eyes, brows, nose, lips, clothes and backdrop vary.

    returns  Still of size x size, aligned, mouth shut
    """
    rng = np.random.default_rng(seed)
    points = _align_points(_draw_shape(rng))
    easel = _Easel(size, rng)
    colours = _draw_colours(rng)
    _draw_backdrop(easel, points, colours, rng)
    _draw_head(easel, points, colours, rng)
    _draw_eyes(easel, points, colours, rng)
    _draw_nose(easel, points, colours)
    _draw_lips(easel, points, colours)
    return Still(easel.finish(), points)


def _align_points(points):
    """Bring points to where FFHQ's alignment puts them."""
    quad = faces.quad(points[_IN_68].mean(1))
    basis = np.stack([quad[3] - quad[0], quad[1] - quad[0]])
    return ((points - quad[0]) @ np.linalg.inv(basis)).astype(np.float32)


def _draw_shape(rng):
    """A plausible face: the mean of real ones with its proportions changed, the lips together."""
    points = np.zeros((len(LAYOUT), 2))
    for vertex, place in MEAN_HALF.items():
        points[_of(vertex)] = place
        points[_MIRRORED[_of(vertex)]] = (1000 - place[0], place[1])
    points /= 1000
    middle = np.array((0.5, points[_of(168)][1]))

    def change(spread):
        return np.exp(rng.normal(0, spread))

    points[:, 0] = 0.5 + (points[:, 0] - 0.5) * change(0.05)  # a broad face
    low = ramp(points[:, 1], points[_of(2)][1], points[_of(152)][1])
    points[:, 0] = 0.5 + (points[:, 0] - 0.5) * (1 + low * rng.normal(0, 0.09))  # a broad jaw
    points[:, 1] += low * rng.normal(0, 0.02)  # a long chin
    scale, lift = np.array((1.0, change(0.12))), rng.normal(0, 0.01)
    for side in (0, 1):
        eye = _of(*UPPER_LIDS[side], *LOWER_LIDS[side], *IRISES[5 * side : 5 * side + 5])
        centre = points[eye].mean(0)
        points[eye] = centre + (points[eye] - centre) * scale
        points[_of(*BROWS[side]), 1] += lift
    nose = _of(*(vertex for vertex in NOSE if vertex not in (164,)))
    points[nose] = middle + (points[nose] - middle) * (change(0.1), change(0.04))
    lips = np.concatenate([_UPPER_LIP, _LOWER_LIP, _of(61, 291, 78, 308)])
    centre = points[lips].mean(0)
    points[lips] = centre + (points[lips] - centre) * (change(0.06), change(0.15))
    upper, lower = _of(*UPPER_INNER), _of(*LOWER_INNER)
    middle = (points[upper] + points[lower]) / 2
    points[upper], points[lower] = middle - (0, 0.0005), middle + (0, 0.0005)
    return points


def _draw_colours(rng):
    """Colours that go together, each (3,) 0 to 255."""
    tan = rng.beta(1.2, 1.6)
    skin = np.array((236, 194, 168)) * (1 - tan) + np.array((98, 62, 44)) * tan + rng.normal(0, 5, 3)
    hairs = np.array([(28, 22, 20), (58, 40, 28), (98, 66, 40), (150, 108, 62), (168, 164, 160), (132, 66, 36)])
    hair = hairs[rng.integers(2 if tan > 0.6 else len(hairs))] * rng.uniform(0.8, 1.15)
    irises = np.array([(70, 44, 26), (92, 66, 38), (84, 110, 132), (92, 112, 78)])
    iris = irises[rng.integers(2 if tan > 0.5 else 4)]
    lip = skin * (0.84, 0.66, 0.66) + (rng.uniform(0, 16), 0, 0)
    return {
        "skin": skin,
        "hair": hair,
        "iris": iris,
        "lip": lip,
        "brow": 0.75 * hair + 0.15 * skin,
        "clothes": rng.uniform(15, 200, 3),
        "shirt": rng.uniform(120, 245, 3),
        "back": rng.uniform(40, 220, (2, 3)),
    }


class _Easel:
    """A picture that takes soft-edged shapes."""

    def __init__(self, size, rng):
        self.size, self.rng = size, rng
        self.x, self.y = _nodes(size).reshape(size, size, 2).transpose(2, 0, 1)
        self.image = np.zeros((size, size, 3))

    def shape(self, polygon, soft=0.004):
        """Cover of a polygon, 0 to 1."""
        return ramp(_inside(np.asarray(polygon, np.float64), self.size, soft), -soft, soft)

    def ellipse(self, centre, radii, soft=0.3):
        reach = np.hypot((self.x - centre[0]) / radii[0], (self.y - centre[1]) / radii[1])
        return 1 - ramp(reach, 1 - soft, 1 + soft)

    def lay(self, cover, colour):
        self.image += (np.asarray(colour) - self.image) * cover[..., None]

    def shade(self, cover, factor):
        self.image *= 1 + (factor - 1) * cover[..., None]

    def noise(self, across, down):
        """Smooth noise of unit variance with these scales, in fractions of the side."""
        from scipy.ndimage import gaussian_filter

        grain = gaussian_filter(self.rng.standard_normal((256, 256)), (256 * down, 256 * across), mode="wrap")
        grain = torch.from_numpy(grain / grain.std())[None, None]
        mode = "area" if self.size < 256 else "bilinear"
        return F.interpolate(grain, size=(self.size, self.size), mode=mode)[0, 0].numpy()

    def finish(self):
        grain = 1 + 0.012 * self.noise(0.012, 0.012) + 0.006 * self.noise(0.003, 0.003)
        return np.clip(np.rint(self.image * grain[..., None]), 0, 255).astype(np.uint8)


def _draw_backdrop(easel, points, colours, rng):
    blend = np.clip(easel.y + 0.1 * easel.noise(0.15, 0.15), 0, 1)
    easel.image += colours["back"][0] + (colours["back"][1] - colours["back"][0]) * blend[..., None]
    chin, left, right = points[_of(152)], points[_of(234)], points[_of(454)]
    middle = (left + right) / 2
    half = (right[0] - left[0]) / 2
    if rng.random() < 0.45:  # long hair
        length = rng.uniform(0.9, 1.7)
        easel.lay(
            easel.ellipse(middle + (0, 0.25 * half * length), (1.28 * half, 1.5 * half * length), 0.06),
            colours["hair"] * 0.8,
        )
    throat = chin[1] - 0.5 * half
    neck = [(middle[0] + aside * half, y) for aside, y in ((-0.62, throat), (0.62, throat), (0.75, 1.2), (-0.75, 1.2))]
    easel.lay(easel.shape(neck, 0.02), colours["skin"] * 0.82)
    easel.shade(easel.ellipse(chin - (0, 0.05), (0.75 * half, 0.12), 0.5), 0.78)  # the chin's shadow
    slope = rng.uniform(0.1, 0.22)
    collar = chin[1] + rng.uniform(0.07, 0.12)
    for sign in (-1, 1):
        neck = middle[0] + sign * 0.6 * half
        easel.lay(
            easel.shape(
                [
                    (neck, collar - 0.05),
                    (neck + sign * 0.6, collar + slope),
                    (neck + sign * 0.6, 1.4),
                    (middle[0] - sign * 0.02, 1.4),
                    (middle[0], collar + 0.16),
                ]
            ),
            colours["shirt"],
        )
        easel.lay(
            easel.shape(
                [
                    (neck + sign * 0.05, collar - 0.02),
                    (neck + sign * 0.6, collar + slope),
                    (neck + sign * 0.6, 1.4),
                    (middle[0] + sign * 0.04, 1.4),
                ]
            ),
            colours["clothes"],
        )


def _draw_head(easel, points, colours, rng):
    oval = points[_of(*OVAL)].astype(np.float64)
    left, right = points[_of(234)], points[_of(454)]
    middle = (left + right) / 2
    half = (right[0] - left[0]) / 2
    for side in (left, right):
        easel.lay(easel.ellipse(side + (0, 0.02), (0.035, 0.075), 0.12), colours["skin"] * 0.86)
        easel.shade(easel.ellipse(side + (0, 0.02), (0.016, 0.045), 0.5), 0.8)
    top = oval[:, 1].min()
    skull = middle[1] - (middle[1] - top) * rng.uniform(1.12, 1.3)
    head = easel.ellipse((middle[0], middle[1]), (1.04 * half, middle[1] - skull), 0.03) * (easel.y < middle[1])
    crown = easel.ellipse((middle[0], middle[1]), (1.13 * half, (middle[1] - skull) * 1.12), 0.05) * (
        1 - ramp(easel.y, middle[1] - 0.04, middle[1] + 0.02)
    )
    bald = rng.random() < 0.12
    if not bald:
        strands = 1 + 0.16 * easel.noise(0.004, 0.06)
        easel.lay(crown, colours["hair"] * strands[..., None])
    face = np.maximum(easel.shape(oval, 0.006), head if bald else 0)
    easel.lay(face, colours["skin"])
    light = rng.uniform(-0.1, 0.1)
    across, down = (easel.x - middle[0]) / half, (easel.y - middle[1]) / half
    easel.shade(face, (1.06 - 0.22 * np.clip(across**2 + 0.25 * down**2, 0, 1.5) + light * across)[..., None])
    for cheek in _of(50, 280):
        easel.shade(0.5 * easel.ellipse(points[cheek], (0.07, 0.06), 0.9), np.array((1.05, 0.93, 0.93)))
    if not bald:
        line = top + rng.uniform(0.0, 0.05) + 0.05 * across**2 * rng.uniform(-1, 2.5) + 0.006 * easel.noise(0.02, 0.3)
        fringe = crown * (1 - ramp(easel.y, line - 0.008, line + 0.008))
        easel.lay(fringe, colours["hair"] * strands[..., None] * (0.9 + 0.3 * np.clip(down + 1.2, 0, 1))[..., None])
    if rng.random() < 0.25:
        beard = ramp(easel.y, points[_of(2)][1], points[_of(13)][1] + 0.02) * easel.shape(oval, 0.03)
        easel.lay(beard * rng.uniform(0.15, 0.6) * (0.8 + 0.2 * easel.noise(0.004, 0.01)).clip(0, 1), colours["hair"])


def _draw_eyes(easel, points, colours, rng):
    for side in (0, 1):
        upper, lower = (points[_of(*line[side])].astype(np.float64) for line in (UPPER_LIDS, LOWER_LIDS))
        centre = (upper.mean(0) + lower.mean(0)) / 2
        easel.shade(easel.ellipse(centre - (0, 0.012), (0.085, 0.055), 0.8), 0.9)
        opening = np.concatenate([upper, lower[-2:0:-1]])
        cover = easel.shape(opening, 0.003)
        iris = points[_of(*IRISES[5 * side : 5 * side + 5])]
        radius = np.linalg.norm(iris[1:] - iris[0], axis=1).mean()
        easel.lay(cover, (228, 224, 220))
        for part, colour, soft in ((1.0, colours["iris"] * 0.6, 0.1), (0.85, colours["iris"], 0.2), (0.42, PUPIL, 0.2)):
            easel.lay(cover * easel.ellipse(iris[0], (part * radius, part * radius), soft), colour)
        glint = iris[0] + (0.35 * radius, -0.35 * radius)
        easel.lay(cover * easel.ellipse(glint, (0.22 * radius, 0.22 * radius), 0.4), (250, 250, 250))
        easel.shade(cover * (1 - ramp(easel.y - upper[:, 1].min(), 0.0, 0.022)), 0.65)
        lash = np.concatenate([upper, upper[::-1] - (0, 0.008)])
        easel.lay(0.85 * easel.shape(lash, 0.003), colours["hair"] * 0.4)
        crease = np.concatenate([upper - (0, 0.019), upper[::-1] - (0, 0.024)])
        easel.shade(0.6 * easel.shape(crease, 0.004), 0.75)
        easel.shade(0.5 * easel.shape(np.concatenate([lower, lower[::-1] + (0, 0.006)]), 0.004), 0.75)
        brow = points[_of(*BROWS[side])].astype(np.float64)
        band = np.concatenate([brow[:5], brow[9:4:-1]])
        easel.lay(0.85 * easel.shape(band.mean(0) + (band - band.mean(0)) * (1.05, 0.8), 0.008), colours["brow"])


def _draw_nose(easel, points, colours):
    tip, base = points[_of(4)], points[_of(2)]
    bridge, width = points[_of(6)], points[_of(278)][0] - points[_of(48)][0]
    for sign in (-1, 1):
        side = ((bridge[0] + sign * 0.3 * width + tip[0] + sign * 0.5 * width) / 2, (bridge[1] + tip[1]) / 2)
        easel.shade(easel.ellipse(side, (0.2 * width, (tip[1] - bridge[1]) * 0.6), 0.9), 0.93)
        easel.shade(easel.ellipse((tip[0] + sign * 0.47 * width, base[1] - 0.02), (0.1 * width, 0.028), 0.8), 0.82)
        easel.lay(
            0.8 * easel.ellipse((tip[0] + sign * 0.24 * width, base[1] - 0.006), (0.13 * width, 0.009), 0.5),
            colours["skin"] * 0.35,
        )
    easel.shade(easel.ellipse(base + (0, 0.012), (0.4 * width, 0.016), 0.8), 0.86)
    easel.shade(easel.ellipse(tip - (0, 0.01), (0.16 * width, 0.022), 0.9), 1.09)
    easel.shade(easel.ellipse((bridge + tip) / 2, (0.1 * width, (tip[1] - bridge[1]) * 0.5), 0.9), 1.06)


def _draw_lips(easel, points, colours):
    lines = [points[_of(*line)].astype(np.float64) for line in (UPPER_OUTER, UPPER_INNER, LOWER_INNER, LOWER_OUTER)]
    easel.lay(easel.shape(np.concatenate([lines[0], lines[1][::-1]]), 0.005), colours["lip"] * 0.86)
    easel.lay(easel.shape(np.concatenate([lines[2], lines[3][::-1]]), 0.005), colours["lip"])
    middle = points[_of(17)]
    inner = points[_of(14)]
    easel.shade(easel.ellipse((inner + middle) / 2, (0.05, 0.012), 0.9), 1.13)
    easel.shade(easel.ellipse(middle + (0, 0.018), (0.06, 0.014), 0.8), 0.86)
    seam = np.concatenate([lines[1] - (0, 0.002), lines[2][::-1] + (0, 0.003)])
    easel.lay(0.8 * easel.shape(seam, 0.003), colours["lip"] * 0.42)


# The mean face of 73 frontal portraits with shut mouths, aligned, and of their mirror images: thousandths of the side,
# the left half of the picture.
MEAN_HALF = {
    0: (500, 729),
    1: (500, 639),
    2: (500, 662),
    4: (500, 614),
    5: (500, 580),
    6: (500, 498),
    7: (338, 480),
    8: (500, 439),
    9: (500, 406),
    10: (500, 270),
    13: (500, 746),
    14: (500, 747),
    17: (500, 777),
    18: (500, 813),
    21: (236, 380),
    33: (329, 474),
    37: (468, 722),
    39: (439, 726),
    40: (417, 730),
    45: (477, 613),
    46: (286, 435),
    48: (422, 625),
    50: (301, 605),
    52: (343, 412),
    53: (310, 419),
    54: (262, 336),
    55: (451, 434),
    58: (242, 743),
    61: (387, 736),
    63: (296, 403),
    64: (421, 635),
    65: (389, 415),
    66: (384, 394),
    67: (362, 282),
    69: (375, 334),
    70: (271, 423),
    75: (445, 645),
    78: (396, 737),
    80: (428, 740),
    81: (448, 742),
    82: (472, 744),
    83: (466, 812),
    84: (469, 774),
    87: (472, 745),
    88: (428, 741),
    91: (417, 756),
    93: (220, 609),
    95: (412, 740),
    97: (466, 659),
    98: (429, 650),
    101: (361, 576),
    103: (303, 303),
    104: (319, 345),
    105: (334, 392),
    107: (442, 402),
    108: (434, 333),
    109: (426, 272),
    117: (291, 540),
    127: (216, 489),
    129: (415, 622),
    132: (227, 675),
    133: (433, 481),
    135: (295, 803),
    136: (297, 835),
    144: (359, 486),
    145: (377, 487),
    146: (401, 746),
    148: (448, 927),
    149: (371, 893),
    150: (337, 870),
    151: (500, 333),
    152: (500, 931),
    153: (397, 485),
    154: (415, 483),
    155: (427, 482),
    157: (410, 464),
    158: (390, 457),
    159: (370, 456),
    160: (352, 460),
    161: (341, 465),
    162: (222, 428),
    163: (347, 483),
    164: (500, 684),
    168: (500, 468),
    172: (267, 796),
    173: (425, 474),
    175: (500, 912),
    176: (407, 913),
    178: (448, 743),
    181: (440, 767),
    185: (401, 733),
    187: (279, 662),
    191: (412, 739),
    194: (418, 830),
    195: (500, 552),
    197: (500, 527),
    199: (500, 883),
    200: (500, 847),
    201: (458, 844),
    203: (393, 642),
    204: (387, 808),
    205: (334, 640),
    206: (367, 668),
    212: (338, 745),
    214: (306, 754),
    215: (241, 719),
    216: (345, 699),
    234: (217, 548),
    246: (334, 470),
    468: (375, 470),
    469: (399, 469),
    470: (375, 448),
    471: (351, 470),
    472: (375, 491),
}


# ---------------------------------------------------------------------------------------------------------------
# Motion fields


def _iod(points):
    """Distance between the eyes' centres, in the units of the points."""
    landmarks = points[_IN_68].mean(1)
    return float(np.linalg.norm(landmarks[42:48].mean(0) - landmarks[36:42].mean(0)))


FIELDS = (
    "close",
    "lower",
    "upper",
    "jaw",
    "width",
    "round",
    "brow_left",
    "brow_right",
    "yaw",
    "pitch",
    "right",
    "down",
    "roll",
    "scale",
)
UPPER_SHARE = 0.2  # of an opening that the upper lip makes by rising
JAW_AT_LIP = 0.92  # of the jaw's drop that reaches the middle of the lower lip
CORNER_DROP = 0.3  # of the jaw's drop that reaches the mouth's corners
LID_TRAVEL = 0.92  # of the way to the lower lid that the upper lid goes


class _Rig:
    """The motion fields of one still, and the picture they move.

    A weight of 1 moves the part by one inter-ocular distance ("close": shuts the mouth; "roll": turns by one radian;
    "scale": doubles; "width": doubles the mouth's). Above and below the lips' line the same motions apply; they are
    two layers because each is a spline through points of its own, one without the lower lip, one without the upper.
    """

    def __init__(self, still, size):
        self.size = size
        self.points = still.points.astype(np.float64)
        self.iod = _iod(still.points)
        self.texture = _texture(still.image, size)
        corners = self.points[_of(78, 308)]
        self.centre = corners.mean(0)
        self.half = np.linalg.norm(corners[1] - corners[0]) / 2
        self.right = (corners[1] - corners[0]) / (2 * self.half)  # the mouth's own axes
        self.down = np.array((-self.right[1], self.right[0]))
        self._place_controls()
        moves = self._moves()  # (F, N, 2)
        layers = []
        for torn in (_LOWER_LIP, _UPPER_LIP):
            keep = np.setdiff1d(np.arange(len(self.controls)), torn)
            values = moves[:, keep].transpose(1, 0, 2).reshape(len(keep), -1)
            layers.append(_spline(self.controls[keep], values, GRID, smoothing=2e-5))
        self.fields = torch.from_numpy(np.stack(layers)).view(2, len(FIELDS), 2, GRID, GRID)
        self.at_points = self._at_points()  # (F, len(LAYOUT), 2)
        self._calibrate()

    def move(self, weights):
        """Points moved by the fields: (T, F) -> (T, len(LAYOUT), 2)."""
        return self.points + np.einsum("tf,fnc->tnc", weights, self.at_points)

    def _place_controls(self):
        """Points that hold the fields: the face's, then those of neck, hair and border, with what they follow."""
        chin, iod = self.points[_of(152)], self.iod
        middle = 0.5 * (self.points[_of(234)] + self.points[_of(454)])
        around = []  # x, y, shares of the head's and jaw's motion
        for below, head, jaw in ((0.1, 0.75, 0.6), (0.22, 0.5, 0.22), (0.36, 0.25, 0.04), (0.5, 0.08, 0)):
            for aside in (-0.75, -0.4, 0, 0.4, 0.75):
                place = chin + self.down * below * iod * (1 - 0.5 * abs(aside)) + self.right * aside * iod
                around.append((*place, head, jaw * np.exp(-((aside / 0.45) ** 2))))
        for point in self.points[_of(*OVAL)]:
            if (point - middle) @ self.down < 0.1 * iod:
                around += [(*(middle + (point - middle) * far), head, 0) for far, head in ((1.22, 0.85), (1.5, 0.5))]
        around = np.array(around)
        around = around[((around[:, :2] > 0.02) & (around[:, :2] < 0.98)).all(1)]
        border = _border()
        around = np.concatenate([around, np.pad(border, ((0, 0), (0, 2)))])
        count = len(self.points)
        self.controls = np.concatenate([self.points, around[:, :2]])
        self.follows_head = np.concatenate([np.ones(count), around[:, 2]])
        self.follows_jaw = around[:, 3]
        self.is_face = np.arange(len(self.controls)) < count
        self.h = (self.controls - self.centre) @ self.right / iod  # from the mouth, in inter-ocular distances
        self.v = (self.controls - self.centre) @ self.down / iod

    def _moves(self):
        """What each field does at each control point: (F, N, 2), fractions of the side."""
        moves = dict.fromkeys(FIELDS)
        lower, upper, thick, arch = self._lips()
        vertical = {"lower": lower, "upper": -upper, "round": thick, "jaw": self._jaw(arch)}
        moves.update({name: amount[:, None] * self.down * self.iod for name, amount in vertical.items()})
        moves["width"] = self._width()
        moves["close"] = self._close()
        moves["brow_left"], moves["brow_right"] = self._brow(0), self._brow(1)
        moves.update(self._head())
        return np.stack([moves[name] for name in FIELDS])

    def _lips(self):
        """The lips' own motion: how far each control goes with lower lip, upper lip and rounding, and the arch of it.

        The arch is 1 at the middle of the mouth and 0 at its corners.
        """
        across = np.clip(np.abs(self.h) * self.iod / self.half, 0, 1)
        arch = (1 - across**2) ** 0.7
        lower, upper, thick = np.zeros((3, len(self.controls)))
        edge = self.v[_of(17)]
        below = self.is_face & (self.v > edge) & (self.v < edge + 0.45)
        lower[below] = 0.8 * np.exp(-((self.h[below] / 0.3) ** 2) - (self.v[below] - edge) / 0.13)
        upper[_of(164)] = 0.3
        for target, line, amount in (
            (lower, LOWER_INNER, 1.0),
            (lower, LOWER_OUTER, 0.88),
            (upper, UPPER_INNER, 1.0),
            (upper, UPPER_OUTER, 0.75),
            (thick, UPPER_OUTER, -0.22),
            (thick, LOWER_OUTER, 0.26),
        ):
            lip = _of(*line[1:-1])
            target[lip] = amount * arch[lip]
        return lower, upper, thick, arch

    def _jaw(self, arch):
        """The jaw drops as one piece, hardly at all near the ears; the upper lip stays."""
        aside = np.exp(-((np.abs(self.h) / 0.62) ** 2.5))
        drop = (0.32 + 0.68 * ramp(self.v, 0.0, 0.3)) * aside
        cheeks = 0.32 * np.exp(np.minimum(self.v, 0) / 0.14) * ramp(np.abs(self.h), 0.2, 0.42) * aside
        jaw = np.where(self.v < 0, cheeks, drop)
        jaw[_UPPER_LIP] = CORNER_DROP * (1 - arch[_UPPER_LIP])
        jaw[_LOWER_LIP] = CORNER_DROP + (JAW_AT_LIP - CORNER_DROP) * arch[_LOWER_LIP]
        jaw[_of(61, 291, 78, 308)] = CORNER_DROP
        jaw[_of(*NOSE, *IRISES, *np.ravel(UPPER_LIDS), *np.ravel(LOWER_LIDS), *np.ravel(BROWS), *FOREHEAD)] = 0
        jaw[~self.is_face] = self.follows_jaw
        return jaw

    def _width(self):
        """The corners go outwards and a little up; it fades towards cheeks, nose and chin."""
        reach = self.half / self.iod
        outwards = np.clip(self.h, -reach, reach)
        fade = np.exp(-((np.maximum(np.abs(self.h) - reach, 0) / 0.3) ** 1.5) - (self.v / 0.32) ** 2) * self.is_face
        fade[_of(*NOSE)] = 0
        amount = (outwards * fade)[:, None] * self.right - 0.12 * np.abs(outwards * fade)[:, None] * self.down
        return amount * self.iod

    def _close(self):
        """Bring the inner lips of a not quite shut mouth together, on a line between them."""
        moves = np.zeros_like(self.controls)
        upper, lower = _of(*UPPER_INNER[1:-1]), _of(*LOWER_INNER[1:-1])
        line = 0.35 * self.points[upper] + 0.65 * self.points[lower]
        for inner, outer in ((upper, UPPER_OUTER), (lower, LOWER_OUTER)):
            moves[inner] = line - self.points[inner]
            moves[_of(*outer[1:-1])] = 0.8 * moves[inner]
        return moves

    def _brow(self, side):
        brow = self.points[_of(*BROWS[side])].mean(0)
        eye = self.points[_of(*UPPER_LIDS[side])].mean(0)
        aside = (self.controls - brow) @ self.right / self.iod
        below = (self.controls - brow) @ self.down / self.iod
        room = max((eye - brow) @ self.down / self.iod, 0.1)
        fade = np.where(below < 0, np.exp(-((below / 0.4) ** 2)), 1 - ramp(below, 0.03, 0.8 * room))
        amount = fade * np.exp(-((aside / 0.38) ** 2)) * self.is_face
        return -amount[:, None] * self.down * self.iod

    def _head(self):
        """Turning a head: what is nearer to the camera moves further, and the nose is nearest.

        Eyes and mouth, by which frames are aligned, stay about where they are; the outline goes the other way.
        """
        ears = self.points[_of(234, 454)]
        middle, half = ears.mean(0), np.linalg.norm(ears[1] - ears[0]) / 2
        from_middle = self.controls - middle
        depth = 1 - 0.8 * (from_middle @ self.right / half) ** 2 - 0.45 * (from_middle @ self.down / (1.35 * half)) ** 2
        nose = np.exp(-((self.controls - self.points[_of(4)]) ** 2).sum(1) / (0.22 * self.iod) ** 2)
        depth = (np.clip(depth, 0, 1) + 0.55 * nose) * self.is_face
        arm = self.controls - (self.points[_of(152)] + 0.2 * self.iod * self.down)  # from the neck
        head = self.follows_head[:, None]
        turn = (depth[:, None] - 0.75 * head) * self.iod
        return {
            "yaw": turn * self.right,
            "pitch": turn * self.down,
            "right": head * self.right * self.iod,
            "down": head * self.down * self.iod,
            "roll": head * np.stack([-arm[:, 1], arm[:, 0]], 1),
            "scale": head * from_middle,
        }

    def _at_points(self):
        """How far each field moves each point: read from the very grids that warp the picture."""
        at = torch.from_numpy(self.points.astype(np.float32))[None, None].expand(2, -1, -1, -1)
        moved = _sample(self.fields.flatten(1, 2), at)[:, :, 0].view(2, len(FIELDS), 2, -1).permute(0, 1, 3, 2).numpy()
        below = self.v[: len(self.points)] > 0
        below[_UPPER_LIP], below[_LOWER_LIP] = False, True
        return np.where(below[None, :, None], moved[1], moved[0])

    def _calibrate(self):
        """Measure the opening that is left when shut, and the lips' weight that makes one unit of opening."""
        weights = np.zeros((2, len(FIELDS)))
        weights[:, FIELDS.index("close")] = 1
        weights[1, FIELDS.index("lower")] = 0.1 * (1 - UPPER_SHARE)
        weights[1, FIELDS.index("upper")] = 0.1 * UPPER_SHARE
        shut, opened = mouth_opening(self.move(weights)[:, _IN_68].mean(2))
        self.rest, self.gain = shut, 0.1 / (opened - shut)


def _texture(image, size):
    """The picture to sample from, twice as fine as the frames so that moving by half a pixel does not blur them."""
    picture = torch.tensor(image).permute(2, 0, 1)[None].float()
    wanted = 2 * size
    if wanted != picture.shape[-1]:
        picture = F.interpolate(picture, size=(wanted, wanted), mode="bicubic", antialias=True).clamp(0, 255)
    blur = torch.tensor([0.2, 0.6, 0.2])
    picture = F.conv2d(F.pad(picture, (1, 1, 1, 1), "replicate").transpose(0, 1), blur.view(1, 1, 1, 3))
    return F.conv2d(picture, blur.view(1, 1, 3, 1)).transpose(0, 1).contiguous()


# ---------------------------------------------------------------------------------------------------------------
# Motion: what a face does while it speaks


def _noise(rng, frames, columns, seconds):
    """Random walks that wander at this pace, of unit variance: (frames, columns)."""
    from scipy.ndimage import gaussian_filter1d

    sigma = seconds * files.FPS
    margin = int(4 * sigma) + 1
    walk = gaussian_filter1d(rng.standard_normal((frames + 2 * margin, columns)), sigma, axis=0)
    return walk[margin : margin + frames] * np.sqrt(2 * np.sqrt(np.pi) * sigma)


def blinks(rng, frames):
    """How far the lids are closed at each frame, 0 to 1: about 17 blinks a minute of 150 to 300 ms."""
    closed = np.zeros(frames)
    start = rng.exponential(2.5)
    while start * files.FPS < frames:
        length = rng.uniform(0.15, 0.3)
        phase = (np.arange(frames) / files.FPS - start) / length
        wave = np.where(phase < 0.35, ramp(phase, 0, 0.35), 1 - ramp(phase, 0.5, 1.0))
        closed = np.maximum(closed, np.where((phase > 0) & (phase < 1), wave, 0))
        start += length + 0.8 + rng.exponential(2.5)
    return closed


@dataclass
class Motion:
    """What each frame shows.

    weights  (T, F) of the motion fields
    opening  (T,) gap of the lips; jaw (T,) drop of the chin; both in inter-ocular distances
    lids     (T,) 0 open, 1 shut
    gaze     (T, 2) shift of the irises, in inter-ocular distances
    tongue   (T,) how high it lies: 0 down, 1 up
    bite     (T,) how far the upper teeth reach below the line where the lips meet, in inter-ocular distances
    """

    weights: np.ndarray
    opening: np.ndarray
    jaw: np.ndarray
    lids: np.ndarray
    gaze: np.ndarray
    tongue: np.ndarray
    bite: np.ndarray

    def __len__(self):
        return len(self.weights)

    def part(self, start, stop):
        return Motion(*(getattr(self, one.name)[start:stop] for one in fields(self)))


def _motion(rig, track, rng, independent):
    """All the motion of a clip: the mouth by the track, the rest by chance.

    independent  each frame is a moment of its own, not the next of a clip
    """
    track = np.asarray(track, np.float64)
    count = len(track)
    opening = np.clip(track[:, 0], 0, 0.45)
    width = np.clip(track[:, 1], -0.35, 0.25)
    jaw = np.clip(track[:, 2], 0, 0.05 + 1.2 * opening)
    gap = np.maximum(opening - rig.rest, 0) * rig.gain
    head = (
        rng.standard_normal((count, 6))
        if independent
        else _noise(rng, count, 6, 0.45) * 0.8 + _noise(rng, count, 6, 0.16) * 0.12 + rng.standard_normal(6) * 0.6
    )
    brows = rng.standard_normal((count, 2)) if independent else _noise(rng, count, 2, 0.25)
    loud = opening if independent else _smooth(opening, 0.12)
    w = dict.fromkeys(FIELDS, np.zeros(count))
    w["close"] = np.ones(count)
    w["upper"] = UPPER_SHARE * gap
    w["lower"] = (1 - UPPER_SHARE) * gap - JAW_AT_LIP * jaw
    w["jaw"] = jaw
    w["width"] = width
    w["round"] = 0.6 * np.maximum(-width, 0)
    both = np.maximum(brows[:, 0], -0.5) * 0.018 + 0.1 * (loud - loud.mean())
    w["brow_left"], w["brow_right"] = both + 0.005 * brows[:, 1], both - 0.005 * brows[:, 1]
    # Small, but for the turning: alignment takes a head's shift, roll and size out of a real clip too.
    for name, column, amount in (
        ("yaw", 0, 0.045),
        ("pitch", 1, 0.03),
        ("right", 2, 0.008),
        ("down", 3, 0.006),
        ("roll", 4, 0.009),
        ("scale", 5, 0.004),
    ):
        w[name] = np.clip(head[:, column], -2.2, 2.2) * amount
    w["pitch"] = w["pitch"] + 0.12 * (loud - loud.mean())
    if independent:
        lids = np.where(rng.random(count) < 0.06, rng.uniform(0.3, 1, count), 0)
        gaze = rng.standard_normal((count, 2)) * (0.012, 0.005)
    else:
        lids = blinks(rng, count)
        gaze = np.round(_noise(rng, count, 2, 0.4) * 1.2) * (0.009, 0.004)
    lids = np.clip(lids + np.clip(0.05 * brows[:, 1], -0.08, 0.12), -0.08, 1)
    tongue = rng.random(count) if independent else np.clip(0.5 + 0.35 * _noise(rng, count, 1, 0.12)[:, 0], 0, 1)
    bite = np.full(count, rng.uniform(-0.005, 0.03))
    return Motion(np.stack([w[name] for name in FIELDS], 1), opening, jaw, lids, gaze, tongue, bite)


def _smooth(values, seconds):
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(values, seconds * files.FPS, mode="nearest")


def perform(still, track, size=None, seed=0, independent=False):
    """Make a still face speak.

    still        Still
    track        (T, 3) mouth track at 25 frames a second: opening, width, jaw, as `articulation.TRACK`
    size         side of the frames in pixels; None takes the still's
    seed         of head motion, brows, gaze and blinks
    independent  no clip but T moments of the same face, each by itself
    returns      iterator of (frame uint8 (size, size, 3), landmarks float32 (68, 2) in pixels)
    """
    rig = _Rig(still, size or len(still.image))
    motion = _motion(rig, track, np.random.default_rng(seed), independent)
    yield from _perform(rig, motion)


def _perform(rig, motion):
    for start in range(0, len(motion), CHUNK):
        part = motion.part(start, start + CHUNK)
        points = _moved_points(rig, part)
        frames = _render(rig, part, points)
        landmarks = (points[:, _IN_68].mean(2) * rig.size - 0.5).astype(np.float32)
        yield from zip(frames, landmarks)


# ---------------------------------------------------------------------------------------------------------------
# Rendering


def _moved_points(rig, motion):
    points = rig.move(motion.weights)
    for upper, lower in zip(UPPER_LIDS, LOWER_LIDS):
        lid = _of(*upper[1:-1])
        drop = LID_TRAVEL * (rig.points[_of(*lower[1:-1])] - rig.points[lid])
        points[:, lid] += motion.lids[:, None, None] * drop
    return points


def _render(rig, motion, points):
    """Frames of one chunk: uint8 (T, S, S, 3)."""
    size = rig.size
    count = len(points)
    weights = torch.from_numpy(motion.weights.astype(np.float32))
    shift = torch.einsum("tf,lfcgh->tlcgh", weights, rig.fields).reshape(count * 2, 2, GRID, GRID)
    shift = _invert(shift)
    if size != GRID:
        shift = F.interpolate(shift, size=(size, size), mode="bilinear")
    shift = shift.view(count, 2, 2, size, size)
    mouth = _Mouth(rig, motion, points)
    below = mouth.below()  # (T, S, S)
    at = _positions(size) + torch.lerp(shift[:, 0], shift[:, 1], below[:, None]).permute(0, 2, 3, 1)
    for side in (0, 1):
        _look(rig, motion, at, side)
    texture = rig.texture.expand(count, -1, -1, -1)
    frames = _sample(texture, at)
    for side in (0, 1):
        _blink(rig, motion, texture, frames, at, side)
    mouth.paint(frames)
    return frames.clamp(0, 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def _invert(shift):
    """From where a forward motion field brings each node: (N, 2, G, G) -> shift to add to a node."""
    nodes = _positions(GRID)
    back = -shift
    for _ in range(4):
        back = -_sample(shift, nodes + back.permute(0, 2, 3, 1))
    return back


def _curve(x, y, knots):
    """Lines through points, each frame its own, read at fixed knots: (T, N), (T, N) -> (T, len(knots))."""
    return np.stack([np.interp(knots, xs, ys) for xs, ys in zip(x, y)])


class _Mouth:
    """The gap between the lips, in the mouth's own coordinates: x is -1 and 1 at the corners, y is pixels downwards."""

    KNOTS = np.linspace(-1, 1, 41)

    def __init__(self, rig, motion, points):
        self.rig, self.motion = rig, motion
        size = rig.size
        corners = points[:, _of(78, 308)] * size  # (T, 2, 2)
        self.centre = corners.mean(1)
        across = corners[:, 1] - corners[:, 0]
        self.half = np.linalg.norm(across, axis=1) / 2
        self.right = across / (2 * self.half[:, None])
        self.down = np.stack([-self.right[:, 1], self.right[:, 0]], 1)
        self.upper = self._line(points[:, _of(*UPPER_INNER)] * size)
        self.lower = self._line(points[:, _of(*LOWER_INNER)] * size)
        self.iod = rig.iod * size

    def _line(self, points):
        local = points - self.centre[:, None]
        x = np.einsum("tnc,tc->tn", local, self.right) / self.half[:, None]
        y = np.einsum("tnc,tc->tn", local, self.down)
        return torch.from_numpy(_curve(x, y, self.KNOTS).astype(np.float32))

    def _local(self, rows, columns):
        """Pixels of a box in the mouth's coordinates: x, y, each (T, h, w)."""
        px = (torch.arange(columns.start, columns.stop) + 0.5).view(1, 1, -1) - _column(self.centre[:, 0])
        py = (torch.arange(rows.start, rows.stop) + 0.5).view(1, -1, 1) - _column(self.centre[:, 1])
        x = (px * _column(self.right[:, 0]) + py * _column(self.right[:, 1])) / _column(self.half)
        return x, px * _column(self.down[:, 0]) + py * _column(self.down[:, 1])

    def _read(self, line, x):
        place = (x.clamp(-1, 1) + 1) * (len(self.KNOTS) - 1) / 2
        left = place.floor().clamp(max=len(self.KNOTS) - 2)
        index = left.long().flatten(1)
        start, stop = line.gather(1, index), line.gather(1, index + 1)
        return torch.lerp(start, stop, (place - left).flatten(1)).view_as(x)

    def below(self):
        """1 where a pixel belongs to what moves with the lower lip, 0 above: (T, S, S)."""
        everything = slice(0, self.rig.size)
        x, y = self._local(everything, everything)
        middle = self._read((self.upper + self.lower) / 2, x)
        soft = 1 + 0.3 * self.iod * (x.abs() - 1).clamp(min=0)
        return (0.5 + (y - middle) / soft).clamp(0, 1)

    def _box(self):
        size = self.rig.size
        low = np.floor(self.centre.min(0) - (self.half.max() + 2, 0.3 * self.iod)).astype(int)
        high = np.ceil(self.centre.max(0) + (self.half.max() + 2, 0.6 * self.iod)).astype(int)
        low, high = np.clip(low, 0, size - 1), np.clip(high, 1, size)
        return slice(low[1], high[1]), slice(low[0], high[0])

    def paint(self, frames):
        rows, columns = self._box()
        x, y = self._local(rows, columns)
        upper, lower = self._read(self.upper, x), self._read(self.lower, x)
        gap = lower - upper
        cover = (0.5 + (y - upper)).clamp(0, 1) * (0.5 + (lower - y)).clamp(0, 1) * (gap / 0.8).clamp(0, 1)
        cover = (cover * (x.abs() < 1))[:, None]
        inside = self._inside(x, y, upper, lower)
        part = frames[:, :, rows, columns]
        frames[:, :, rows, columns] = torch.lerp(part, inside, cover)

    def _inside(self, x, y, upper, lower):
        """Throat, tongue and teeth: (T, 3, h, w). Upper teeth belong to the skull, tongue and lower ones to the jaw."""
        iod = self.iod
        bite = _column(self._bite())  # where the teeth meet, at rest
        jaw = _column(np.maximum(self.motion.jaw, 0.55 * self.motion.opening) * JAW_AT_LIP) * iod
        soft = max(0.9, 0.012 * iod)

        def edge(distance):
            return (0.5 + distance / soft).clamp(0, 1)

        x2 = x * x
        depth = ((y - upper) / (lower - upper).clamp(min=1)).clamp(0, 1)
        colour = _mix(THROAT, DEEP, depth)
        tongue = bite + 0.85 * jaw + (0.06 - 0.09 * _column(self.motion.tongue) + 0.10 * x2) * iod
        colour = _over(
            colour,
            _mix(TONGUE, TONGUE_FRONT, ramp(y - tongue, 0, 0.10 * iod)),
            ramp(y - tongue, -0.02 * iod, 0.02 * iod) * (1 - ramp(x.abs(), 0.5, 0.9)),
        )
        top = bite + jaw + (0.03 - 0.03 * x2) * iod
        lower_teeth = edge(y - top) * (1 - ramp(x.abs(), 0.5, 0.78))
        colour = _over(colour, self._teeth(x, 0.7, 11.0), lower_teeth * 0.9)
        biting = bite + (_column(self.motion.bite) - 0.05 * x2) * iod
        upper_teeth = edge(biting - y) * (1 - ramp(x.abs(), 0.66, 0.93))
        colour = _over(colour, self._teeth(x, 1.0, 7.5), upper_teeth)
        shadow = 0.42 + 0.58 * ramp(y - upper, -0.01 * iod, 0.07 * iod)
        shadow = shadow * (1 - 0.45 * ramp(x.abs(), 0.35, 1.0)) * (0.75 + 0.25 * ramp(lower - y, 0, 0.05 * iod))
        return colour * shadow[:, None] * self._light()

    def _teeth(self, x, light, count):
        """Ivory with faint lines between the teeth, which narrow towards the sides as an arch does in perspective."""
        angle = torch.asin((x * 0.95).clamp(-0.99, 0.99)) * count / np.pi
        between = (angle - angle.round()).abs() * 2  # 0 between, 1 in a tooth's middle
        lines = 0.86 + 0.14 * ramp(between, 0.0, 0.3)
        return TEETH.view(1, 3, 1, 1) * (light * lines)[:, None]

    def _bite(self):
        """Pixels from the line between the corners down to where the lips meet at rest, for a skull without jaw."""
        rest = self.motion.weights.copy()
        for name in ("lower", "upper", "jaw", "width", "round"):
            rest[:, FIELDS.index(name)] = 0
        middle = self.rig.move(rest)[:, _of(13, 14)].mean(1) * self.rig.size
        return np.einsum("tc,tc->t", middle - self.centre, self.down)

    def _light(self):
        """How bright the face is around the mouth, against a well lit one."""
        around = torch.from_numpy(self.rig.points[_of(205, 425, 199, 164)].astype(np.float32))[None, None]
        level = float(_sample(self.rig.texture, around).mean())
        return 0.45 + 0.55 * np.clip(level / 165, 0.4, 1.15)


THROAT = torch.tensor([34.0, 12.0, 12.0])
DEEP = torch.tensor([84.0, 34.0, 34.0])
TONGUE = torch.tensor([120.0, 52.0, 52.0])
TONGUE_FRONT = torch.tensor([178.0, 92.0, 88.0])
PUPIL = (14, 12, 12)
TEETH = torch.tensor([232.0, 215.0, 196.0])


def _column(values):
    """One number per frame, (T,), ready for pictures: (T, 1, 1)."""
    return torch.from_numpy(np.asarray(values, np.float32))[:, None, None]


def _mix(start, stop, amount):
    return start.view(1, 3, 1, 1) + (stop - start).view(1, 3, 1, 1) * amount[:, None]


def _over(below, above, cover):
    return below + (above - below) * cover[:, None]


class _Eye:
    """The lids of one eye at rest, in its own coordinates: x runs from corner to corner (0 to 1), y downwards."""

    def __init__(self, rig, side):
        upper, lower = rig.points[_of(*UPPER_LIDS[side])], rig.points[_of(*LOWER_LIDS[side])]
        brow = rig.points[_of(*BROWS[side][5:])].mean(0)
        self.start = upper[0]
        across = upper[-1] - upper[0]
        self.length = np.linalg.norm(across)
        self.right = across / self.length
        self.down = np.array((-self.right[1], self.right[0]))
        knots = np.linspace(0, 1, 33)

        def line(points):
            along, down = (points - self.start) @ self.right, (points - self.start) @ self.down
            return np.interp(knots, along / self.length, down)

        self.upper = torch.from_numpy(line(upper).astype(np.float32))
        self.lower = torch.maximum(torch.from_numpy(line(lower).astype(np.float32)), self.upper)
        self.fold = float(np.clip(-(brow - self.start) @ self.down, 0.08 * rig.iod, 0.3 * rig.iod))

    def local(self, at):
        shift = at - torch.from_numpy(self.start.astype(np.float32))
        right, down = (torch.from_numpy(axis.astype(np.float32)) for axis in (self.right, self.down))
        return (shift @ right) / self.length, shift @ down

    @staticmethod
    def read(line, x):
        place = x.clamp(0, 1) * 32
        left = place.floor().clamp(max=31).long()
        return torch.lerp(line[left], line[left + 1], place - left)

    def box(self, rig):
        """The pixels that may show this eye, with a margin for the head's motion."""
        centre = self.start + self.right * self.length / 2
        reach = np.array((0.95 * self.length, 0.55 * self.length + self.fold)) + 0.06 * rig.iod
        low = np.clip(np.floor((centre - reach) * rig.size).astype(int), 0, rig.size - 1)
        high = np.clip(np.ceil((centre + reach) * rig.size).astype(int), 1, rig.size)
        return slice(low[1], high[1]), slice(low[0], high[0])


def _look(rig, motion, at, side):
    """Shift the iris: points inside the eye's opening are read from beside themselves; changes `at`."""
    eye = _Eye(rig, side)
    rows, columns = eye.box(rig)
    part = at[:, rows, columns]
    x, y = eye.local(part)
    upper, lower = eye.read(eye.upper, x), eye.read(eye.lower, x)
    open_ = (lower - upper).clamp(min=1e-6)
    inside = ramp((y - upper) / open_, 0.0, 0.3) * (1 - ramp((y - upper) / open_, 0.75, 1.0))
    inside = inside * ramp(x, 0.05, 0.3) * (1 - ramp(x, 0.7, 0.95))
    gaze = torch.from_numpy((motion.gaze * rig.iod).astype(np.float32))[:, None, None]
    at[:, rows, columns] = part - inside[..., None] * gaze


def _blink(rig, motion, texture, frames, at, side):
    """Draw the upper lid down: its skin is stretched from the fold to the lashes; changes `frames`."""
    moving = np.flatnonzero(np.abs(motion.lids) > 0.01)
    if not len(moving):
        return
    eye = _Eye(rig, side)
    rows, columns = eye.box(rig)
    part = at[moving][:, rows, columns]
    x, y = eye.local(part)
    upper, lower = eye.read(eye.upper, x), eye.read(eye.lower, x)
    closed = torch.from_numpy(motion.lids[moving].astype(np.float32))[:, None, None]
    lid = upper + closed * LID_TRAVEL * (lower - upper)
    fold = upper - 0.7 * eye.fold
    stretched = fold + (y - fold) * (upper - fold) / (lid - fold)
    stretched = torch.where(y < fold, y, stretched)
    down = torch.from_numpy(eye.down.astype(np.float32))
    skin = _sample(texture[moving], part + (stretched - y)[..., None] * down)
    pixel = 1 / rig.size
    cover = (0.5 + (lid + 0.5 * pixel - y) / pixel).clamp(0, 1) * ((x > -0.3) & (x < 1.3))
    shade = 1 - 0.1 * closed.clamp(0, 1) * ramp(y, upper, lower + 1e-4) * (x > 0) * (x < 1)
    window = frames[moving][:, :, rows, columns]
    window = torch.lerp(window, skin * shade[:, None], cover[:, None])
    whole = frames[moving]
    whole[:, :, rows, columns] = window
    frames[moving] = whole


# ---------------------------------------------------------------------------------------------------------------
# Clips


def synth(
    out,
    count,
    *,
    size=256,
    frames=None,
    seconds=None,
    portraits=(),
    detector_model=None,
    exclude=(),
    vary=False,
    voices=None,
    recordings=(),
    recorded_share=0.5,
    people=None,
    sound_only=False,
    text=None,
    seed=0,
    start=0,
    workers=1,
    shard=None,
):
    """Write clips of puppets that speak, with their truth; a clip that is there already is left alone.

    out              folder, made if absent
    count            clips to write, numbered from `start`; clip n depends on seed and n alone, so that ranges may be
                     made apart and added to
    size             side of the frames
    frames           None: clips with speech. A number: no speech, that many independent moments of a face
    seconds          speech is cut after this long; None keeps whole utterances
    portraits        folder of photos to blend, or several, as `portraits` takes them; each face is of two people or
                     more. None at all draws the faces
    detector_model   MediaPipe's face landmarker, for portraits and recordings; None looks where `landmarks.detector`
                     does
    exclude          stems or people of portraits that are never used
    vary             take the portraits evenly by tone of skin and hair, and draw light and backdrop; without it, faces
                     are as common as they are among the portraits, and lit as those
    voices           names of espeak voices; None takes all, () none
    recordings       clips of real talkers, whose sound and measured mouths drive the puppets
    recorded_share   how many of the clips are driven by recordings, where there are voices too
    people           so many faces take turns, None gives every clip a face of its own
    sound_only       write what the voices say, NNNNNN.wav and NNNNNN.json, and draw no faces: hundreds of times as fast
    text             file of sentences to say, one a line: clip n says line n, and starts again after the last. None
                     makes them up
    workers          processes
    shard            a jobs.Shard, or what else takes its share of a sequence; None makes all clips
    returns          iterator of records {"step", "clip", "frames", "speaker", "donors", "people"}, one per clip, in
                     order; with "varied" where faces are
    raises           TalkheadError if recordings or moments are to be sound only, drawn faces to be varied, or there is
                     nothing to say

    Writes NNNNNN.mp4 (lossless, sound at 16 kHz, marked as aligned and as synthetic), NNNNNN.landmarks.npy (T, 68, 2),
    NNNNNN.track.npy (T, 3), and last NNNNNN.json: {fps, phonemes, text, speaker, seed, donors, people, source, blink}
    and, where faces are varied, "varied": {tone, tone_angle (degrees), hair, hair_shade, light: {…}, backdrop: {…}}
    (see `variety`); or, sound only, NNNNNN.wav and NNNNNN.json with "frames" in the place of "blink".
    """
    if sound_only and (recordings or frames is not None):
        raise TalkheadError("sound only: is for voices; leave recordings and frames out")
    if vary and not portraits:
        raise TalkheadError("vary: is for composites of portraits, for drawn faces differ anyway; pass portraits too")
    lines = None if text is None else _lines(text)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    job = {
        "out": out,
        "size": size,
        "frames": frames,
        "seconds": seconds,
        "portraits": portraits,
        "model": detector_model,
        "exclude": tuple(exclude),
        "vary": vary,
        "voices": voices,
        "recordings": tuple(sorted(map(str, recordings))),
        "share": recorded_share,
        "people": people,
        "sound_only": sound_only,
        "lines": lines,
        "seed": seed,
    }
    indices = range(start, start + count)
    indices = indices if shard is None else shard(indices)
    if workers <= 1:
        studio = _Studio(**job)
        yield from map(studio, indices)
        return
    import multiprocessing

    _Studio(**job).prepare()  # detection runs once, here
    with multiprocessing.get_context("spawn").Pool(workers, _open_studio, (job,)) as pool:
        yield from pool.imap(_in_studio, indices, chunksize=4)


class _Studio:
    """Makes the clips of one call of `synth`."""

    def __init__(
        self,
        out,
        size,
        frames,
        seconds,
        portraits,
        model,
        exclude,
        vary,
        voices,
        recordings,
        share,
        people,
        sound_only,
        lines,
        seed,
    ):
        self.out, self.size, self.frames, self.seconds = out, size, frames, seconds
        self.portraits, self.model, self.exclude, self.vary = portraits, model, exclude, vary
        self.voices, self.recordings, self.share, self.seed = voices, recordings, share, seed
        self.people, self.sound_only, self.lines = people, sound_only, lines
        self._stills = self._detector = None

    def prepare(self):
        if self.portraits and self._stills is None and not self.sound_only:
            self._stills = portraits(self.portraits, self.model, cache=self.out / "portraits.npz", exclude=self.exclude)

    def __call__(self, index):
        name = self.out / f"{index:06d}"
        record = {"step": index, "clip": f"{name}.{'wav' if self.sound_only else 'mp4'}"}
        about = name.with_suffix(".json")
        if about.is_file():
            told = json.loads(about.read_text())
            frames = told["frames"] if self.sound_only else len(told["blink"])
            return {
                **record,
                "frames": frames,
                "speaker": told["speaker"],
                "donors": told["donors"],
                "people": told.get("people", []),
                **_varied(told.get("varied")),
            }
        self.prepare()
        rng = np.random.default_rng([self.seed, index])
        if self.sound_only:
            speech = self._speech(rng, index)
            self._write_sound(name, speech)
            return {**record, "frames": len(speech.track), "speaker": speech.speaker, "donors": [], "people": []}
        still = self._face(rng if self.people is None else np.random.default_rng([self.seed, index % self.people, 1]))
        speech = self._speech(rng, index)
        rig = _Rig(still, self.size)
        motion = _motion(rig, speech.track, rng, independent=self.frames is not None)
        self._write(name, rig, motion, speech, still)
        return {
            **record,
            "frames": len(speech.track),
            "speaker": speech.speaker,
            "donors": list(still.names),
            "people": list(still.people),
            **_varied(still.varied),
        }

    def _face(self, rng):
        if not self.portraits:
            return drawn(int(rng.integers(2**31)), self.size)
        if not self.vary:
            return composite(choose(self._stills, rng), int(rng.integers(2**31)))
        return relit(composite(choose(self._stills, rng, evenly(self._stills, rng)), int(rng.integers(2**31))), rng)

    def _speech(self, rng, index):
        if self.frames is not None:
            return articulation.Utterance(np.zeros(0, np.float32), _moments(rng, self.frames), [], "", "", "moments")
        real = self.recordings and (self.voices == () or rng.random() < self.share)
        seed = int(rng.integers(2**31))
        if real:
            path = self.recordings[rng.integers(len(self.recordings))]
            if self._detector is None:
                self._detector = detector("mediapipe", self.model)
            speech = articulation.recorded(path, self._detector, cache=self.out / "recordings")
        else:
            voice = str(rng.choice(self.voices)) if self.voices else None
            text = articulation.sentence(rng) if self.lines is None else self.lines[index % len(self.lines)]
            speech = articulation.speak(text, voice, seed)
        return _trim(speech, self.seconds)

    def _write(self, name, rig, motion, speech, still):
        sound = (speech.audio, articulation.SAMPLE_RATE) if self.frames is None else None
        landmarks = []
        with video_files.FrameWriter(
            name.with_suffix(".mp4"),
            fps=files.FPS,
            sound=sound,
            lossless=True,
            synthetic=True,
            metadata={"talkhead_aligned": str(self.size)},
        ) as writer:
            for frame, points in _perform(rig, motion):
                writer.write(frame)
                landmarks.append(points)
        files.write_array(name.with_suffix(".landmarks.npy"), np.stack(landmarks))
        files.write_array(name.with_suffix(".track.npy"), np.asarray(speech.track, np.float32))
        files.write_json(
            name.with_suffix(".json"),
            self._told(speech)
            | {
                "donors": list(still.names),
                "people": list(still.people),
                "blink": [round(float(lid), 3) for lid in motion.lids],
            }
            | _varied(still.varied),
        )

    def _write_sound(self, name, speech):
        audio_files.write_audio(name.with_suffix(".wav"), speech.audio, articulation.SAMPLE_RATE)
        files.write_json(
            name.with_suffix(".json"), self._told(speech) | {"donors": [], "people": [], "frames": len(speech.track)}
        )

    def _told(self, speech):
        return {
            "fps": files.FPS,
            "phonemes": [list(phoneme) for phoneme in speech.phonemes],
            "text": speech.text,
            "speaker": speech.speaker,
            "seed": self.seed,
            "source": speech.source,
        }


def _varied(chosen):
    return {} if chosen is None else {"varied": chosen}


_studio = None  # of a worker process


def _open_studio(job):
    global _studio
    torch.set_num_threads(1)
    _studio = _Studio(**job)


def _in_studio(index):
    return _studio(index)


def _lines(text):
    """The sentences of a file."""
    try:
        lines = [line.strip() for line in files.decoded(Path(text).read_bytes()).splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as problem:
        raise TalkheadError(
            f"{text}: cannot be read as text ({problem}); give a file of sentences, one a line"
        ) from None
    if not lines:
        raise TalkheadError(f"{text}: no sentences in it; write one a line")
    return lines


def _moments(rng, count):
    """Mouth poses as they occur in speech, each by itself: a track (count, 3)."""
    opening = np.where(rng.random(count) < 0.3, 0, 0.28 * rng.beta(1.3, 2.2, count))
    width = np.clip(rng.normal(-0.03, 0.09, count), -0.28, 0.15)
    jaw = opening * rng.uniform(0.3, 0.9, count)
    return np.stack([opening, width, jaw], 1).astype(np.float32)


def _trim(speech, seconds):
    if seconds is None or len(speech.track) <= seconds * files.FPS:
        return speech
    frames = max(int(seconds * files.FPS), 1)
    end = frames / files.FPS
    phonemes = [(begin, min(stop, end), label) for begin, stop, label in speech.phonemes if begin < end]
    return replace(
        speech,
        audio=speech.audio[: int(end * articulation.SAMPLE_RATE)],
        track=speech.track[:frames],
        phonemes=phonemes,
    )
