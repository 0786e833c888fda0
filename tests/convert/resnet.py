"""ResNet-18 of PyTorch: the layers, names and order of `torchvision.models.resnet18`."""


def basic(t, inputs, filters, stride):
    """A block, of `torch.nn`."""

    class Basic(t.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = t.Conv2d(inputs, filters, 3, stride, 1, bias=False)
            self.bn1 = t.BatchNorm2d(filters)
            self.relu = t.ReLU(inplace=True)
            self.conv2 = t.Conv2d(filters, filters, 3, 1, 1, bias=False)
            self.bn2 = t.BatchNorm2d(filters)
            self.downsample = None
            if stride != 1 or inputs != filters:
                conv = t.Conv2d(inputs, filters, 1, stride, bias=False)
                self.downsample = t.Sequential(conv, t.BatchNorm2d(filters))

        def forward(self, x):
            y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            return self.relu(y + (x if self.downsample is None else self.downsample(x)))

    return Basic()


def resnet18(t, filters=64, classes=1000):
    """The network, of `torch.nn`."""

    class ResNet18(t.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = t.Conv2d(3, filters, 7, 2, 3, bias=False)
            self.bn1 = t.BatchNorm2d(filters)
            self.relu, self.maxpool = t.ReLU(inplace=True), t.MaxPool2d(3, 2, 1)
            before = filters
            for n in range(4):
                width = filters * 2**n
                blocks = basic(t, before, width, 1 + (n > 0)), basic(t, width, width, 1)
                setattr(self, f"layer{n + 1}", t.Sequential(*blocks))
                before = width
            self.avgpool, self.fc = t.AdaptiveAvgPool2d(1), t.Linear(before, classes)

        def forward(self, x):
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            for n in range(4):
                x = getattr(self, f"layer{n + 1}")(x)
            return self.fc(self.avgpool(x).flatten(1))

    return ResNet18()
