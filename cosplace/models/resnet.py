"""ResNet and VGG-16 without pooling and classifier, with the modules and parameter names of torchvision.

They are defined here because importing torchvision takes longer than locating a photo; tests compare both.
Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; stride in the 3 x 3 convolution of a
bottleneck.  Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015.
"""

from torch import Tensor, nn

RESNET_BLOCKS = {
    "ResNet18": ("basic", (2, 2, 2, 2)),
    "ResNet50": ("bottleneck", (3, 4, 6, 3)),
    "ResNet101": ("bottleneck", (3, 4, 23, 3)),
    "ResNet152": ("bottleneck", (3, 8, 36, 3)),
}
RESNET_WIDTHS = (64, 128, 256, 512)
SMALL_WIDTHS = (32, 64, 128)  # of ResNet18_Small: half the width, without the last stage
VGG16_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: (B, in_channels, H, W) -> (B, width, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, images: Tensor) -> Tensor:
        """Compute the block."""
        shortcut = images if self.downsample is None else self.downsample(images)
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.bn2(self.conv2(features))
        features += shortcut
        return self.relu(features)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut: (B, in_channels, H, W) -> (B, 4 width, H / stride, ...)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, images: Tensor) -> Tensor:
        """Compute the block."""
        shortcut = images if self.downsample is None else self.downsample(images)
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.relu(self.bn2(self.conv2(features)))
        features = self.bn3(self.conv3(features))
        features += shortcut
        return self.relu(features)


def build_resnet(name: str) -> nn.Sequential:
    """Build a ResNet up to its last stage; ResNet18_Small up to the third stage, with half the channels."""
    kind, num_blocks = RESNET_BLOCKS.get(name, ("basic", (2, 2, 2)))
    widths = SMALL_WIDTHS if name == "ResNet18_Small" else RESNET_WIDTHS
    block = BasicBlock if kind == "basic" else Bottleneck
    channels = widths[0]
    layers: list[nn.Module] = [
        nn.Conv2d(3, channels, kernel_size=7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    ]
    for stage, (width, count) in enumerate(zip(widths, num_blocks, strict=True)):
        stride = 1 if stage == 0 else 2
        downsample = None
        if stride != 1 or channels != width * block.expansion:
            shortcut = nn.Conv2d(channels, width * block.expansion, kernel_size=1, stride=stride, bias=False)
            downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width * block.expansion))
        blocks = [block(channels, width, stride, downsample)]
        channels = width * block.expansion
        blocks += [block(channels, width) for _ in range(count - 1)]
        layers.append(nn.Sequential(*blocks))
    return nn.Sequential(*layers)


def build_vgg16() -> nn.Sequential:
    """Build the convolutions of VGG-16 without the last ReLU and the last pooling."""
    layers: list[nn.Module] = []
    channels = 3
    for widths in VGG16_CHANNELS:
        for width in widths:
            layers += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    return nn.Sequential(*layers[:-2])
