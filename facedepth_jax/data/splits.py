"""Who is in which split of the paper's data sets, and the subsets of Table 2. Data and nothing else; NumPy in and out.

Sources, of what the paper does not say itself: the code of the authors' group (C) and our own choice (A).
"""

import numpy as np

# Pandora, by subject (section 4.1.1; validation: C). All others train.
PANDORA_SPLITS = {"test": (10, 14, 16, 20), "validation": (9, 18, 21, 22)}
PANDORA_SUBJECTS = 22
PANDORA_SEQUENCES = 108  # one subject has three of the five
# What the group leaves out of the test subjects, "extreme head poses and occlusions" (C): {folder: ranges of frames},
# first and last inclusive; the folder counts 5 (subject - 1) + sequence.
PANDORA_EXCLUDED = {
    48: ((140, 319), (764, 809)),
    49: ((0, 1420),),
    66: ((623, 674), (810, 822)),
    69: ((0, 1403),),
    70: ((1623, 1641), (1698, 1709), (2010, 2020)),
    80: ((710, 730), (932, 980)),
    96: ((396, 426), (1416, 1437), (1817, 1859), (1896, 1935)),
    97: ((39, 57), (113, 139), (173, 206), (809, 837), (1102, 1127)),
    98: (
        *((112, 140), (319, 350), (386, 423), (512, 551)),
        *((687, 712), (836, 861), (1434, 1484), (1527, 1605)),
    ),
    100: (
        *((18, 44), (260, 315), (386, 424), (593, 602)),
        *((1006, 1042), (1096, 1121), (1287, 1371), (1822, 1845)),
    ),
}

# Biwi, by sequence (test: C; validation: A). All others train.
BIWI_SPLITS = {"test": (1, 10, 11), "validation": (12, 13)}
BIWI_SEQUENCES = 24
BIWI_TEST_FRAMES = {1: 498, 10: 726, 11: 572}
BIWI_SAME_PERSON = {15: 3, 18: 5, 21: 2, 22: 7}  # recorded twice: one person each

# Table 2: angle subsets (section 4.1.1; within 10 degrees, inclusive) and sequence subsets, with their unions.
A1_LIMIT_DEG = 10.0
ANGLE_SUBSETS = ("A1", "A2", "A1+A2")
SEQUENCE_SUBSETS = ("S1-S3", "S4-S5", "S1-S5")


def split_of(number: int, splits: dict[str, tuple[int, ...]]) -> str:
    """The split of a subject's or sequence's number."""
    return next((split for split, members in splits.items() if number in members), "train")


def in_subset(frames: dict[str, np.ndarray], angles: str, sequences: str) -> np.ndarray:
    """Which frames are in a cell of Table 2: bool (N,).

    Args:
      frames: columns yaw, pitch, roll in degrees, sequence; (N,) each.
      angles: one of ANGLE_SUBSETS; A1 when all three angles are within 10 degrees, A2 when one is not. A frame with an
        unknown angle is in neither, but in their union.
      sequences: one of SEQUENCE_SUBSETS; a frame of a data set without sequences (0) is in their union alone.
    """
    turned = np.stack([np.abs(frames[name]) for name in ("yaw", "pitch", "roll")])
    known = np.isfinite(turned).all(0)
    frontal = (turned <= A1_LIMIT_DEG).all(0)
    sequence = np.asarray(frames["sequence"])
    by_angle = {"A1": known & frontal, "A2": known & ~frontal, "A1+A2": np.ones_like(known)}
    by_sequence = {
        "S1-S3": (sequence >= 1) & (sequence <= 3),
        "S4-S5": (sequence >= 4) & (sequence <= 5),
        "S1-S5": np.ones_like(known),
    }
    return by_angle[angles] & by_sequence[sequences]
