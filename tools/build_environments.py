"""Build facedepth_jax/data/synthetic/environments.npz from the environments of the npm package @pmndrs/assets (CC0).

    npm pack @pmndrs/assets@1.7.0
    pip install OpenEXR
    python tools/build_environments.py pmndrs-assets-1.7.0.tgz

The package is only read as a tar file; nothing of its code runs. environments.md says what comes out.
"""

import base64
import hashlib
import re
import sys
import tarfile
import tempfile
from pathlib import Path

import cv2
import numpy as np
import OpenEXR

from facedepth_jax.data.synthetic.light import WHITE, basis

TARBALL_SHA256 = "152bd218a3390703f184f0c6ce16e73c8f0a87f32d38530d418a09d33d8208dc"
OUT = Path(__file__).parents[1] / "facedepth_jax" / "data" / "synthetic" / "environments.npz"
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
WIDTH_PX, QUALITY = 512, 82


def read(data):
    """Read an .exr.js: gray radiance (H, W), float64."""
    raw = base64.b64decode(re.search(rb"base64,([^'\"]+)", data).group(1))
    with tempfile.NamedTemporaryFile(suffix=".exr") as f:
        f.write(raw)
        f.flush()
        pixels = OpenEXR.File(f.name).channels()["RGB"].pixels
    return np.maximum(pixels[..., :3].astype(np.float64) @ LUMINANCE, 0)


def project(radiance):
    """Project a panorama to spherical harmonics, (16,), as light.basis has them."""
    height, width = radiance.shape
    azimuth = 2 * np.pi * ((np.arange(width) + 0.5) / width - 0.5)[None]
    elevation = np.pi * (0.5 - (np.arange(height) + 0.5) / height)[:, None]
    solid = np.cos(elevation) * (2 * np.pi / width) * (np.pi / height)
    x, z = np.sin(azimuth) * np.cos(elevation), np.cos(azimuth) * np.cos(elevation)
    d = np.stack([x, -np.sin(elevation) + 0 * x, z], -1)
    return np.einsum("hw,hwk->k", radiance * solid, basis(d))


def main(path):
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if digest != TARBALL_SHA256:
        sys.exit(f"{path} has SHA-256 {digest}, expected {TARBALL_SHA256} (@pmndrs/assets 1.7.0)")
    names, lights, panoramas = [], [], []
    with tarfile.open(path) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            if member.name.endswith(".exr.js"):
                radiance = read(tar.extractfile(member).read())
                light = project(radiance)
                mean = light[0] * 0.282095
                names.append(Path(member.name).name.removesuffix(".exr.js"))
                lights.append(light / mean)
                small = cv2.resize(radiance / mean, (WIDTH_PX, WIDTH_PX // 2), interpolation=cv2.INTER_AREA)
                panoramas.append(np.round(255 * np.clip(small / WHITE, 0, 1) ** (1 / 2.2)).astype(np.uint8))
    jpeg = cv2.imencode(".jpg", np.concatenate(panoramas), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].ravel()
    np.savez_compressed(OUT, names=np.array(names), light=np.array(lights, np.float32), panoramas=jpeg)
    print(f"{len(names)} environments, {OUT.stat().st_size / 1e6:.2f} MB")
    print(f"{OUT.name}: SHA-256 {hashlib.sha256(OUT.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main(sys.argv[1])
