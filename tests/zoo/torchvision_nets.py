"""torchvision's families, each by its own classes, a few blocks of a few channels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision import models as tv
from torchvision.models import (
    convnext,
    densenet,
    efficientnet,
    mnasnet,
    mobilenetv2,
    mobilenetv3,
    regnet,
    resnet,
    segmentation,
    shufflenetv2,
    swin_transformer,
    vgg,
    video,
)

from .cases import Case, stirred

FEW = {"num_classes": 3}


def images(make: Callable[[], nn.Module], size: int = 32, train: bool = False, n: int = 2) -> Callable[[], Case]:
    """Two colour images, a class for each."""

    def build() -> Case:
        model = make().to(torch.float64)  # some tables are float32 whatever the default is
        spread(model)
        return Case(model.train(train), torch.randn(n, 3, size, size), torch.randint(3, (n,)))

    return build


def spread(model: nn.Module) -> None:
    """Statistics and layer scales that a trained network would have, in place of zeros and millionths."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_(0.0, 0.3)
            m.running_var.uniform_(0.5, 1.5)
        if isinstance(scale := getattr(m, "layer_scale", None), nn.Parameter):
            nn.init.normal_(scale, 1.0, 0.2)


def frozen() -> nn.Module:
    """A backbone as it is, and a head of three classes."""
    model = small_resnet()
    model.requires_grad_(False)
    model.fc = nn.Linear(128, 3)
    return model


def pixels(make: Callable[[], nn.Module], size: int = 32) -> Callable[[], Case]:
    """A class for each pixel of two images, channels last as the loss has them."""

    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make()

        def forward(self, x: Any) -> Any:
            return nn.functional.adaptive_avg_pool2d(self.net(x)["out"], 4).permute(0, 2, 3, 1)

    def build() -> Case:
        model = Pixels()
        spread(model)
        return Case(model.eval(), torch.randn(2, 3, size, size), torch.randint(3, (2, 4, 4)))

    return build


def small_alexnet() -> nn.Module:
    """Its first two convolutions, and a classifier that was replaced."""
    model = tv.AlexNet()
    model.features = model.features[:6]
    model.classifier = nn.Sequential(nn.Dropout(), nn.Linear(192 * 36, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    return model


def small_googlenet() -> nn.Module:
    """Its first two inceptions."""
    model = tv.GoogLeNet(aux_logits=False, init_weights=False)
    for name in ("4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        setattr(model, f"inception{name}", nn.Identity())
    model.fc = nn.Linear(480, 3)
    return model


def small_vgg() -> nn.Module:
    features = vgg.make_layers([8, "M", 8, "M", 16, 16, "M"], batch_norm=True)
    model = tv.VGG(features, init_weights=False, **FEW)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Sequential(nn.Linear(16, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 3))
    return model


def small_v3() -> nn.Module:
    cell = partial(mobilenetv3.InvertedResidualConfig, width_mult=0.5)
    cells = [cell(16, 3, 16, 16, True, "RE", 2, 1), cell(16, 5, 32, 24, True, "HS", 2, 1)]
    return tv.MobileNetV3(cells, last_channel=16, **FEW)


def small_efficientnet() -> nn.Module:
    cell = partial(efficientnet.MBConvConfig, width_mult=0.25, depth_mult=1.0)
    return tv.EfficientNet([cell(1, 3, 1, 32, 16, 1), cell(4, 5, 2, 16, 32, 2)], 0.2, last_channel=16, **FEW)


def small_efficientnet_v2() -> nn.Module:
    cells = [efficientnet.FusedMBConvConfig(2, 3, 1, 8, 8, 1), efficientnet.MBConvConfig(2, 3, 2, 8, 16, 1)]
    return tv.EfficientNet(cells, 0.2, last_channel=16, **FEW)


def small_regnet() -> nn.Module:
    made = regnet.BlockParams.from_init_params(depth=4, w_0=8, w_a=8.0, w_m=2.0, group_width=8, se_ratio=0.25)
    return tv.RegNet(made, stem_width=8, **FEW)


def small_convnext() -> nn.Module:
    made = [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 2)]
    return tv.ConvNeXt(made, stochastic_depth_prob=0.1, **FEW)


def small_swin(block: Any, merging: Any) -> nn.Module:
    sizes = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": [4, 4]}
    return tv.SwinTransformer(block=block, downsample_layer=merging, **sizes, **FEW)


def small_maxvit() -> nn.Module:
    sizes = {"stem_channels": 8, "partition_size": 2, "block_channels": [8, 16], "block_layers": [1, 1], "head_dim": 4}
    return tv.MaxVit(input_size=(16, 16), stochastic_depth_prob=0.1, **sizes, **FEW)


def small_resnet(block: Any = resnet.BasicBlock, **options: Any) -> nn.Module:
    """The first two of the four stages."""
    model = tv.ResNet(block, [1, 1, 1, 1], **options)
    model.layer3 = model.layer4 = nn.Identity()
    model.fc = nn.Linear(128 * block.expansion, 3)
    return model


def small_fcn() -> nn.Module:
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    named = tv._utils.IntermediateLayerGetter(backbone, {"2": "out"})
    return segmentation.FCN(named, segmentation.fcn.FCNHead(8, 3))


def small_deeplab() -> nn.Module:
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    named = tv._utils.IntermediateLayerGetter(backbone, {"2": "out"})
    return segmentation.DeepLabV3(named, segmentation.deeplabv3.DeepLabHead(8, 3, (2, 4)))


def clips() -> Case:
    """Multiscale attention with pooled keys on a short clip."""
    cell = partial(video.mvit.MSBlockConfig, num_heads=2, kernel_q=[3, 3, 3], kernel_kv=[3, 3, 3], stride_q=[1, 1, 1])
    cells = [cell(input_channels=8, output_channels=8, stride_kv=[1, 2, 2])] * 2
    sizes = {"residual_pool": True, "residual_with_cls_embed": False, "rel_pos_embed": True, "proj_after_attn": True}
    model = video.mvit.MViT((16, 16), 4, cells, **sizes, **FEW)
    return Case(model.eval(), torch.randn(1, 3, 4, 16, 16), torch.randint(3, (1,)))


SWIN = swin_transformer

CASES = {
    "AlexNet, inplace ReLU, dropout": images(small_alexnet, 64, train=True),
    "VGG with batch norm, dropout": images(small_vgg, train=True),
    "ResNet, statistics of training": images(small_resnet),
    "ResNet, statistics of the batch": images(small_resnet, train=True, n=3),
    "ResNet, head alone": images(frozen),
    "ResNeXt, bottlenecks": images(lambda: small_resnet(resnet.Bottleneck, groups=4, width_per_group=4)),
    "Wide ResNet, group norm": images(
        lambda: stirred(small_resnet(norm_layer=partial(nn.GroupNorm, 4), zero_init_residual=True))
    ),
    "DenseNet, checkpointed": images(
        lambda: densenet.DenseNet(4, (2, 2), 8, memory_efficient=True, drop_rate=0.1, **FEW), train=True
    ),
    "SqueezeNet": images(lambda: tv.SqueezeNet("1_1", **FEW), 48),
    "GoogLeNet": images(small_googlenet),
    "MobileNet v2": images(lambda: mobilenetv2.MobileNetV2(width_mult=0.1, **FEW)),
    "MobileNet v3": images(small_v3),
    "MNASNet": images(lambda: mnasnet.MNASNet(0.1, **FEW)),
    "ShuffleNet v2": images(lambda: shufflenetv2.ShuffleNetV2([1, 1, 1], [8, 8, 16, 32, 16], **FEW)),
    "EfficientNet, stochastic depth": images(small_efficientnet, train=True),
    "EfficientNet v2": images(small_efficientnet_v2),
    "RegNet": images(small_regnet),
    "ConvNeXt, stochastic depth": images(small_convnext, train=True),
    "ViT": images(lambda: tv.VisionTransformer(16, 4, 2, 2, 8, 16, **FEW), 16),
    "Swin": images(lambda: small_swin(SWIN.SwinTransformerBlock, SWIN.PatchMerging)),
    "Swin v2": images(lambda: stirred(small_swin(SWIN.SwinTransformerBlockV2, SWIN.PatchMergingV2))),
    "MaxViT": images(small_maxvit, 16),
    "FCN": pixels(small_fcn),
    "DeepLab v3": pixels(small_deeplab),
    "MViT v2 of a clip": clips,
}
