"""Print the means of the shape axes that give the mean adult the distances of real faces: identity.MEANS.

    python tools/fit_proportions.py

Bounded least squares over the distances of identity.DISTANCES_MM, averaged over adults drawn without the means; the
skull stays where it is.
"""

import numpy as np
from scipy.optimize import lsq_linear

from facedepth_jax.data.synthetic import identity

PEOPLE, LARGEST = 600, 0.7
AXES = ("head-scale-horiz", "head-scale-depth", "head-angle", "forehead", "eye", "nose", "mouth",
        "chin", "cheek")  # fmt: skip
LEFT_OUT = ("forehead-temple", "eye-trans-down", "eye-corner", "eye-height", "eyebrows", "eye-bag", "eye-eyefold",
            "eye-epicanthus", "nose-trans-in", "nose-trans-out", "mouth-trans-in", "mouth-trans-out", "nose-greek",
            "nose-septum", "nose-nostrils", "nose-curve", "nose-hump", "nose-compression", "mouth-angles",
            "mouth-laugh", "mouth-dimples", "chin-cleft", "chin-triangle", "chin-jaw-drop")  # fmt: skip
SKULL_WEIGHT, SIZE_WEIGHT = 0.15, 0.9  # 1 / mm at each vertex; of a whole unit of an axis
CHEEKS, CHEEKS_OUT_MM = (5694, 5246), 3.0  # wider faces: by eye corners alone they would be pressed to the sides


def main():
    mesh = identity.head()
    directions = {}
    for _, pairs in identity.shape_axes():
        for pair in pairs:
            for end in pair:
                name = identity.sideless(end)
                if name.startswith(AXES) and not name.startswith(LEFT_OUT):
                    directions[name] = directions.get(name, 0) + mesh.targets[end]
    identity.MEANS.clear()
    adults = [p for p in (identity.person(1821, n) for n in range(1, PEOPLE + 1)) if p.age >= identity.ADULT]
    now = identity.distances_mm(np.mean([p.vertices for p in adults], 0))
    skull = np.nonzero((mesh.vertices[:, 2] > -20) & (mesh.vertices[:, 1] < 20) & (mesh.masks["ears"] < 0.1))[0][::5]
    rows, wanted = [], []
    still = identity.distances_mm(mesh.vertices)
    for name, (want, tolerance) in identity.DISTANCES_MM.items():
        rows.append(
            [(identity.distances_mm(mesh.vertices + d)[name] - still[name]) / tolerance for d in directions.values()]
        )
        wanted.append((want - now[name]) / tolerance)
    for vertex in CHEEKS:
        rows.append([d[vertex, 0] / 2 for d in directions.values()])
        wanted.append(CHEEKS_OUT_MM / 2)
    for axis in range(3):
        rows += (SKULL_WEIGHT * np.stack([d[skull, axis] for d in directions.values()], 1)).tolist()
    rows += (SIZE_WEIGHT * np.eye(len(directions))).tolist()
    wanted += [0] * (len(rows) - len(wanted))
    means = lsq_linear(np.array(rows), np.array(wanted), bounds=(0, LARGEST)).x
    means = {name: round(float(mean), 2) for name, mean in zip(directions, means, strict=True) if mean >= 0.02}
    shift = sum(mean * directions[name] for name, mean in means.items())
    then = identity.distances_mm(mesh.vertices + shift)
    print(means)
    for name, (want, tolerance) in identity.DISTANCES_MM.items():
        print(
            f"{name:15s} {now[name]:6.1f} -> {now[name] + then[name] - still[name]:6.1f}, wanted {want} +- {tolerance}"
        )
    print(f"the skull moves by {np.abs(shift[skull]).max():.1f} mm at most")


if __name__ == "__main__":
    main()
