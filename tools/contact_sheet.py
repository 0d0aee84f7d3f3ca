"""Write two pictures of synthetic faces to docs/.

    python tools/contact_sheet.py

synthetic_faces.png: one frame each of many people, then one person's five sequences. augmentation.png: seven people as
they are, then four times as a training with `train.augment` sees them. Gray above depth; the colours run over 220 mm
about the head centre, black is no depth.
"""

from pathlib import Path

import cv2
import jax
import numpy as np
from PIL import Image

from facedepth_jax.augment import augment
from facedepth_jax.data import crop
from facedepth_jax.data.synthetic import SyntheticSource

DOCS = Path(__file__).parents[1] / "docs"
TILE_PX, COLUMNS, ROWS = 84, 12, 8
AUGMENTED = 7  # people
CROP_MM, DEPTH_MM = 330.0, 220.0
GRAYS = 96  # levels, for the size of the file


def tile(frame):
    """Stack gray over depth as palette indices, uint8 (2 TILE_PX, TILE_PX)."""
    x, y = frame.head_xy
    rows, columns = np.mgrid[0 : frame.depth_mm.shape[0], 0 : frame.depth_mm.shape[1]]
    near = (np.hypot(columns - x, rows - y) < 12) & (frame.depth_mm > 0)
    z = float(np.median(frame.depth_mm[near])) if near.any() else 1000.0
    scale = CROP_MM * frame.focal_px[0] / z / TILE_PX
    # Destination pixel -> source pixel.
    warp = np.array([[scale, 0, x - scale * TILE_PX / 2], [0, scale, y - scale * TILE_PX / 2]])

    def cut(image, how):
        return cv2.warpAffine(
            image, warp, (TILE_PX, TILE_PX), flags=how | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
        )

    return stack(cut(frame.gray, cv2.INTER_LINEAR), cut(frame.depth_mm, cv2.INTER_NEAREST), z)


def stack(gray, depth_mm, z):
    gray = gray.astype(int) * GRAYS // 256
    depth = depth_mm.astype(float)
    colour = np.clip((depth - z + 0.25 * DEPTH_MM) / DEPTH_MM, 0, 1)
    colour = GRAYS + 1 + np.round((1 - colour) * (254 - GRAYS)).astype(int)
    return np.vstack([gray, np.where(depth > 0, colour, GRAYS)]).astype(np.uint8)


def example(frame):
    """Crop a frame as `prepare` does."""
    distance_mm = crop.head_distance_mm(frame.depth_mm, frame.head_xy, 9)
    box = crop.crop_box(frame.head_xy, distance_mm, frame.focal_px, CROP_MM)
    gray = crop.resize_gray(crop.crop(frame.gray, box), 96)
    return {
        "gray": gray,
        "depth_mm": crop.resize_depth(crop.crop(frame.depth_mm, box), 96),
        "distance_mm": np.float32(distance_mm),
    }


def augmented():
    """Return the tiles of seven people, then four augmentations of each."""
    people = SyntheticSource(subjects=AUGMENTED)
    examples = [example(next(people.load(position, position + 1))) for position in range(0, 50 * AUGMENTED, 50)]
    batch = {name: np.stack([one[name] for one in examples]) for name in examples[0]}
    batches = [batch, *(jax.device_get(jax.jit(augment)(batch, jax.random.key(seed))) for seed in range(4))]
    return [
        stack(gray, depth_mm, distance_mm)
        for batch in batches
        for gray, depth_mm, distance_mm in zip(*(batch[name] for name in examples[0]), strict=True)
    ]


def palette():
    gray = np.repeat(np.round(np.linspace(0, 255, GRAYS)).astype(np.uint8)[:, None], 3, 1)
    ramp = np.linspace(0, 255, 255 - GRAYS).astype(np.uint8)[:, None]
    turbo = cv2.applyColorMap(ramp, cv2.COLORMAP_TURBO)[:, 0, ::-1]
    return np.concatenate([gray, np.zeros((1, 3), np.uint8), turbo])


def main():
    people = SyntheticSource(subjects=COLUMNS * ROWS, frames_per_sequence=COLUMNS)
    per_person = 5 * COLUMNS
    one_each = []
    for person in range(COLUMNS * ROWS):
        sequence, moment = person % 5, (person * 7) % COLUMNS
        position = person * per_person + sequence * COLUMNS + moment
        one_each.append(tile(next(people.load(position, position + 1))))
    chosen = 82  # a person with much in the way
    sequences = [tile(f) for f in people.load(chosen * per_person, (chosen + 1) * per_person)]

    gap = np.full((10, COLUMNS * TILE_PX), GRAYS - 1, np.uint8)
    write("synthetic_faces.png", np.vstack([grid(one_each), gap, grid(sequences)]))
    tiles = augmented()
    gap = np.full((10, AUGMENTED * 96), GRAYS - 1, np.uint8)
    write("augmentation.png", np.vstack([grid(tiles[:AUGMENTED], AUGMENTED), gap, grid(tiles[AUGMENTED:], AUGMENTED)]))


def grid(tiles, columns=COLUMNS):
    return np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])


def write(name, indices):
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette(palette().ravel().tolist())
    picture.save(DOCS / name, optimize=True)
    print(f"{name}: {picture.width} x {picture.height}, {(DOCS / name).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
