"""Architectures, and :func:`build`, which makes one from its name."""

from __future__ import annotations

from omniconv.models.catalogue import BACKBONES, Backbone, build, task_of
from omniconv.models.dncnn import DnCNN, dncnn
from omniconv.models.nafnet import NAFNet, nafnet
from omniconv.models.resnet_cifar import ResNet, resnet
from omniconv.models.unified import UnifiedBackbone, unified
from omniconv.models.vgg import VGG, vgg

__all__ = [
    "BACKBONES",
    "VGG",
    "Backbone",
    "DnCNN",
    "NAFNet",
    "ResNet",
    "UnifiedBackbone",
    "build",
    "dncnn",
    "nafnet",
    "resnet",
    "task_of",
    "unified",
    "vgg",
]
