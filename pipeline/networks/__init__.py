"""Teachers and students by timm name."""

from pipeline.torchvision_shim import import_torchvision

import_torchvision()  # timm imports it, too, and must find it importable
