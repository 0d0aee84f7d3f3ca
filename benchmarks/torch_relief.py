"""The training step of the project's own method `relief` in PyTorch, written from its architecture and its loss.

As `torch_step.py`, whose mirror fits here too: SAME padding of a k3 s2 convolution is (0, 1) on even sizes, PyTorch's
padding of 1 comes to (1, 0). A step is loss, clipping, AdamW with its schedule, and the average of the weights.
"""

import math
import re

import numpy as np
import torch
import torch.nn.functional as F
import torch_step
from torch import nn
from torch_step import Norm


def conv(inputs, features, size, stride=1):
    return nn.Conv2d(inputs, features, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.conv1, self.norm1 = conv(features, features, 3), Norm(features)
        self.conv2, self.norm2 = conv(features, features, 3), Norm(features)

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)).add_(x), inplace=True)


class Generator(nn.ModuleDict):
    """(B, 1, S, S) -> relief and foreground's logit (B, 2, S, S)."""

    BLOCKS = {1: ["block1"], 2: ["block2a", "block2b"], 3: ["block3a", "block3b"], 4: ["block4a", "block4b"]}

    def __init__(self, width):
        super().__init__()
        features = [1, width, 2 * width, 4 * width, 8 * width]
        for i, blocks in self.BLOCKS.items():
            self[f"down{i}"] = conv(features[i - 1], features[i], 5 if i == 1 else 3, 2)
            self[f"down_norm{i}"] = Norm(features[i])
            self.update({block: Block(features[i]) for block in blocks})
        for i in (3, 2, 1):
            self[f"up{i}"] = conv(features[i + 1], 4 * features[i], 1)
            self[f"up_norm{i}"] = Norm(features[i])
            self[f"up_block{i}"] = Block(features[i])
        self["out"] = nn.Conv2d(width, 8, 3, padding=1)

    def forward(self, x):
        skips = {}
        for i, blocks in self.BLOCKS.items():
            x = F.relu(self[f"down_norm{i}"](self[f"down{i}"](x)), inplace=True)
            for block in blocks:
                x = self[block](x)
            skips[i] = x
        for i in (3, 2, 1):
            x = F.pixel_shuffle(self[f"up{i}"](x), 2).add_(skips[i])
            x = self[f"up_block{i}"](F.relu(self[f"up_norm{i}"](x), inplace=True))
        return F.pixel_shuffle(self["out"](x), 2)


class Torch(torch_step.Torch):
    """A generator, its optimiser and its averaged weights."""

    def __init__(self, *args):
        super().__init__(*args)
        self.optimizer = self.optimizers["generator"]
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 6000, eta_min=3e-5)
        values = self.nets["generator"].state_dict()  # the net's own memory
        self.values = {ours: tensor for ours, tensor in values.items() if tensor.is_floating_point()}
        self.average = {ours: tensor.clone() for ours, tensor in self.values.items()}
        self.steps = 0

    def make_nets(self, width):
        return {"generator": Generator(width)}

    def make_optimizer(self, parameters):
        return torch.optim.AdamW(parameters, 3e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01, fused=True)

    def places(self, name, shape):
        places = np.arange(math.prod(shape)).reshape(shape)
        if re.match(r"generator/(up\d|out)/", name):
            # Channels that become pixels: flax's are (2, 2, C), PyTorch's (C, 2, 2), and rows and columns are mirrored.
            places = places.reshape(*shape[:-1], 4, -1)[..., ::-1, :].swapaxes(-1, -2).reshape(shape)
        return places[::-1, ::-1].transpose(3, 2, 0, 1) if len(shape) == 4 else places

    def losses(self, output, depth_mm, distance_mm):
        """In units of 100 mm; depth in mm, 0 = none, (B, S, S), mirrored."""
        known, behind = depth_mm > 0, (depth_mm - distance_mm[:, None, None]) / 100  # the head's distance
        target = torch.where(known, behind, 3.0).clamp(-3, 3)
        inside = (target.abs() < 2.5).to(self.dtype)
        weight = inside * torch.where(target.abs() < 1, torch.ones_like(target), self.loss["far_weight"])
        total = weight.sum((1, 2), keepdim=True).clamp(min=0.1)
        error = (3 * output[:, 0] - target) * inside
        centred = error - (weight * error).sum((1, 2), keepdim=True) / total
        relief = (weight * (error.abs() + centred.abs()) / (2 * total)).sum((1, 2)).mean()
        slopes = []
        for e, m in ((error, inside), (error.mT, inside.mT)):
            for step in (1, 2, 4):
                both = m[:, step:] * m[:, :-step]
                apart = (e[:, step:] - e[:, :-step]).abs().clamp(max=0.3) * both
                slopes.append((apart.sum((1, 2)) / both.sum((1, 2)).clamp(min=1)).mean())
        (ay, ax), (by, bx) = (self.slopes(depth * inside) for depth in (3 * output[:, 0], target))
        cosine = (1 + ay * by + ax * bx) / ((1 + ay**2 + ax**2) * (1 + by**2 + bx**2)).sqrt()
        here = inside[:, 2:, 1:-1] * inside[:, :-2, 1:-1] * inside[:, 1:-1, 2:] * inside[:, 1:-1, :-2]
        here = here * inside[:, 1:-1, 1:-1] * (torch.maximum(by.abs(), bx.abs()) < 3)
        normals = ((1 - cosine) * here).sum((1, 2)) / here.sum((1, 2)).clamp(min=1)
        foreground = F.binary_cross_entropy_with_logits(output[:, 1], (known & (behind < 3)).to(self.dtype))
        losses = {"loss_relief": relief, "loss_gradient": sum(slopes) / 6, "loss_normals": normals.mean()}
        return losses | {"loss_foreground": foreground}

    @staticmethod
    def slopes(depth):
        """Down and to the right, over two pixels of 320 mm / S, in units of 100 mm."""
        depth = depth * depth.shape[-1] / 6.4
        return depth[:, 2:, 1:-1] - depth[:, :-2, 1:-1], depth[:, 1:-1, 2:] - depth[:, 1:-1, :-2]

    def train(self):
        gray, depth_mm, distance_mm = self.batch
        self.g.train()
        with self.autocast():
            output = self.g(self.gray_image(gray)).to(self.dtype)
        losses = self.losses(output, depth_mm.to(self.dtype).flip(1, 2), distance_mm.to(self.dtype))
        loss = losses["loss_relief"] + self.loss["gradient_weight"] * losses["loss_gradient"]
        loss = loss + self.loss["normals_weight"] * losses["loss_normals"]
        loss = loss + self.loss["foreground_weight"] * losses["loss_foreground"]

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [*self.nets["generator"].parameters()]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, norm - 1e-6)  # which adds 1e-6
        self.optimizer.step()
        self.schedule.step()
        self.steps += 1
        share = 1 - min(0.998, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_([*self.average.values()], [*self.values.values()], share)
        return {"loss_g": loss} | losses

    def averaged_weights(self):
        found = self.as_flax("generator", self.average)
        return {path: value for path, value in found.items() if not path.endswith("/var")}  # see torch_step.Norm
