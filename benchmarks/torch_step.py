"""The paper's training step in PyTorch, written from the paper and on its own: what `train_step.py` measures against.
That of the project's own method: `torch_relief.py`.

As a PyTorch user would have it fast: oneDNN's convolutions on channels-last tensors, activations in place, fused Adam;
on a GPU cuDNN, `torch.compile`, and autocast for bfloat16. What is on a GPU has not been run yet.

SAME padding of a k5 s2 convolution is (1, 2) on even sizes, PyTorch's own padding of 2 is (2, 1): the same in a mirror.
So everything here is mirrored, the images when they come and go, the kernels once: padding by copies, and cropping what
a transposed convolution makes too much, took PyTorch 1.2 times as long at width 16.

Weights come and gradients go as flat dicts of arrays as flax shapes them, "generator/encoder/conv1/kernel".
"""

import contextlib
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cudnn.benchmark = True  # the quickest of cuDNN's algorithms
IMAGES = (2, 3)  # rows and columns of (B, C, S, S)


class Norm(nn.BatchNorm2d):
    """Momentum 0.1 is 0.9 as flax has it. Running variances differ: PyTorch's are unbiased."""

    def __init__(self, features):
        super().__init__(features, eps=1e-5, momentum=0.1)


def down(inputs, features):
    return nn.Conv2d(inputs, features, 5, 2, padding=2, bias=False)


def up(inputs, features):
    return nn.ConvTranspose2d(inputs, features, 5, 2, padding=2, output_padding=1, bias=False)


class Encoder(nn.Module):
    def __init__(self, width):
        super().__init__()
        channels = [1, width, 2 * width, 4 * width, 8 * width]
        for i in range(1, 5):
            self.add_module(f"conv{i}", down(channels[i - 1], channels[i]))
            self.add_module(f"norm{i}", Norm(channels[i]))

    def forward(self, x):
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2), (self.conv3, self.norm3),
                           (self.conv4, self.norm4)):  # fmt: skip
            x = F.leaky_relu(norm(conv(x)), 0.2, inplace=True)
        return x


class Generator(nn.Module):
    """(B, 1, S, S) -> (B, 1, S, S) in [-1, 1]."""

    def __init__(self, width):
        super().__init__()
        self.encoder = Encoder(width)
        channels = [8 * width, 4 * width, 2 * width, width, width // 2]
        for i in range(1, 5):
            self.add_module(f"up{i}", up(channels[i - 1], channels[i]))
            self.add_module(f"norm{i}", Norm(channels[i]))
        self.out = nn.Conv2d(width // 2, 1, 5, padding=2)

    def forward(self, x):
        x = self.encoder(x)
        for conv, norm in ((self.up1, self.norm1), (self.up2, self.norm2), (self.up3, self.norm3),
                           (self.up4, self.norm4)):  # fmt: skip
            x = F.relu(norm(conv(x)), inplace=True)
        return torch.tanh(self.out(x))


class Discriminator(nn.Module):
    """(B, 1, S, S) -> logits (B,)."""

    def __init__(self, width, size):
        super().__init__()
        self.encoder = Encoder(width)
        self.out = nn.Linear((size // 16) ** 2 * 8 * width, 1)

    def forward(self, x):
        return self.out(self.encoder(x).permute(0, 2, 3, 1).flatten(1))[:, 0]  # flax's order, and channels-last's


def flax_name(name):
    """encoder.norm1.weight -> encoder/norm1/norm/scale"""
    *parents, kind = name.split(".")
    if "norm" in parents[-1]:
        parents.append("norm")
        kind = {"weight": "scale", "running_mean": "mean", "running_var": "var"}.get(kind, kind)
    return "/".join([*parents, {"weight": "kernel"}.get(kind, kind)])


class Torch:
    """A generator, a discriminator and their optimisers.

    weights: flat dict of all parameters and running statistics. batch: gray uint8, depth_mm uint16 (B, S, S),
    distance_mm float32 (B,). `dtype`: float32, float64, or bfloat16, that is autocast over float32 weights. `loss`: the
    method's values by name.
    """

    def __init__(self, weights, batch, width, dtype, loss):
        self.loss, self.size = loss, batch["gray"].shape[1]
        self.dtype = torch.float64 if dtype == "float64" else torch.float32
        self.autocast = contextlib.nullcontext
        if dtype == "bfloat16":
            self.autocast = lambda: torch.autocast(DEVICE, torch.bfloat16)
        self.nets = self.make_nets(width)
        self.shapes = {name: value.shape for name, value in weights.items()}
        for name, net in self.nets.items():
            net.to(DEVICE, self.dtype, memory_format=torch.channels_last)
            with torch.no_grad():
                for ours, tensor in [*net.named_parameters(), *net.named_buffers()]:
                    if not ours.endswith("num_batches_tracked"):
                        path = f"{name}/{flax_name(ours)}"
                        places = self.places(path, self.shapes[path])
                        tensor.copy_(torch.from_numpy(weights[path].ravel()[places]))
        self.optimizers = {name: self.make_optimizer(net.parameters()) for name, net in self.nets.items()}
        self.batch = [self.put(x) for x in (batch["gray"], batch["depth_mm"].astype(np.int32), batch["distance_mm"])]
        called = {name: torch.compile(net) if DEVICE == "cuda" else net for name, net in self.nets.items()}
        self.g, self.d = called["generator"], called.get("discriminator")
        self.products = {}

    def make_nets(self, width):
        return {"generator": Generator(width), "discriminator": Discriminator(width, self.size)}

    def make_optimizer(self, parameters):
        return torch.optim.Adam(parameters, 2e-4, betas=(0.5, 0.999), eps=1e-8, fused=True)

    def places(self, name, shape):
        """Of each entry of PyTorch's array its place in flax's flat one of this shape."""
        places = np.arange(math.prod(shape)).reshape(shape)
        if len(shape) == 4:  # (k, k, I, O)
            # A transposed convolution's kernel is turned once in flax and once by the mirror.
            return places.transpose(2, 3, 0, 1) if "/up" in name else places[::-1, ::-1].transpose(3, 2, 0, 1)
        if len(shape) == 2:  # rows and columns of D's last map, (S/16 * S/16 * C, 1)
            grid = self.size // 16
            return places.reshape(grid, grid, -1)[::-1, ::-1].reshape(1, -1)
        return places

    def as_flax(self, name, tensors):
        """{PyTorch's name: tensor} of a net -> {flax's name: array in its shape}"""
        found = {}
        for ours, tensor in tensors.items():
            path, value = f"{name}/{flax_name(ours)}", tensor.detach().cpu().numpy()
            found[path] = np.empty(self.shapes[path], value.dtype)
            found[path].reshape(-1)[self.places(path, self.shapes[path])] = value
        return found

    def put(self, images):
        return torch.from_numpy(images).to(DEVICE)

    def gray_image(self, gray):
        """uint8 (B, S, S) -> (B, 1, S, S) in [-1, 1], mirrored."""
        image = (gray.to(self.dtype) - 127.5) / 127.5
        return image[:, None].flip(IMAGES).contiguous(memory_format=torch.channels_last)

    def depth_image(self, depth_mm):
        """mm, 0 = none, (B, S, S) -> 8-bit levels of 8 mm from 500 mm on, none as 194 -> (B, 1, S, S), mirrored."""
        levels = torch.round((depth_mm.to(self.dtype) - 500) / 8).clamp(0, 255)
        image = torch.where(depth_mm > 0, levels, torch.full_like(levels, 194)) / 127.5 - 1
        return image[:, None].flip(IMAGES).contiguous(memory_format=torch.channels_last)

    def train(self):
        """One step: D on real and generated maps, then G through the D just updated. Gradients stay in the nets."""
        gray, depth_mm, _ = self.batch
        gray, depth = self.gray_image(gray), self.depth_image(depth_mm)
        for net in (self.g, self.d):
            net.train()
        with self.autocast():
            generated = self.g(gray).to(self.dtype)
            real, fake = (self.d(image).to(self.dtype) for image in (depth, generated.detach()))
        one, zero = torch.ones_like(real), torch.zeros_like(real)
        entropy = F.binary_cross_entropy_with_logits
        loss_d = entropy(real, one) + entropy(fake, zero)
        self.update("discriminator", loss_d)

        self.nets["discriminator"].requires_grad_(False)  # G's step needs no gradient by D's weights
        with self.autocast():
            logits = self.d(generated).to(self.dtype)  # moves D's running statistics, which nobody reads
        mse, adversarial = F.mse_loss(generated, depth), entropy(logits, one)
        loss_g = self.loss["lam"] * mse + adversarial
        self.update("generator", loss_g)
        self.nets["discriminator"].requires_grad_(True)
        return {"loss_g": loss_g, "loss_d": loss_d, "loss_mse": mse, "loss_adv": adversarial}

    def update(self, name, loss):
        self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[name].step()

    def gradients(self):
        """Those of the last step, by flax's names and in its shapes."""
        found = {}
        for name, net in self.nets.items():
            found |= self.as_flax(name, {ours: tensor.grad for ours, tensor in net.named_parameters()})
        return found

    def running_means(self):
        """The generator's, after the last step, by flax's names."""
        return {
            flax_name(ours): self.numpy(tensor)
            for ours, tensor in self.nets["generator"].named_buffers()
            if ours.endswith("running_mean")
        }

    def averaged_weights(self):
        """By flax's names and in its shapes; {} if the method does not average."""
        return {}

    def predict(self, gray):
        """uint8 (B, S, S), put -> what the generator makes (B, S, S, C), with the running statistics."""
        self.g.eval()
        with torch.inference_mode(), self.autocast():
            return self.g(self.gray_image(gray)).flip(IMAGES).permute(0, 2, 3, 1).to(self.dtype)

    def product(self, size):
        """A matrix product of this size."""
        if size not in self.products:
            dtype = torch.bfloat16 if self.autocast is not contextlib.nullcontext else self.dtype
            self.products[size] = torch.ones((size, size), dtype=dtype, device=DEVICE)
        return self.products[size] @ self.products[size]

    def wait(self, result):
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    def numpy(self, result):
        return np.array(result.detach().cpu().numpy())  # not a view of what the next step changes

    def device(self):
        return "gpu" if DEVICE == "cuda" else "cpu"

    def device_peak_mib(self):
        """Of the GPU's memory, None on a CPU."""
        return torch.cuda.max_memory_allocated() / 2**20 if DEVICE == "cuda" else None
