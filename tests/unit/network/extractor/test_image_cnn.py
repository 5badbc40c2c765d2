"""A CNN over small images."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.extractor import Extractor, ImageCNN, output_width


def _digits() -> ImageCNN:
    return ImageCNN("pixels", (1, 8, 8), channels=(4, 6), output_dim=5)


@pytest.mark.parametrize(
    ("spec", "input_dim"),
    [
        (_digits(), 64),
        (ImageCNN("pixels", (3, 5, 7), channels=(4,), output_dim=5), 105),
        (ImageCNN("pixels", (1, 1, 1), channels=(2, 2), pooling=1, output_dim=5), 1),
        (
            ImageCNN("pixels", (2, 9, 9), channels=(4, 4), pooling=3, kernel_size=5, output_dim=5),
            162,
        ),
    ],
    ids=["digits", "odd", "one_pixel", "thirds"],
)
@pytest.mark.parametrize("num_rows", [0, 1, 3])
def test_every_image_gives_one_vector(spec: ImageCNN, input_dim: int, num_rows: int) -> None:
    module = spec.build(input_dim)
    assert module(torch.randn(num_rows, input_dim)).shape == (num_rows, 5)
    assert output_width(module, input_dim, feature="pixels") == 5


def test_json_gives_the_same_spec_back() -> None:
    assert Extractor.from_json(_digits().to_json()) == _digits()
    made = Extractor.from_dict({"kind": "image_cnn", "feature": "pixels", "shape": [1, 8, 8]})
    assert made == ImageCNN("pixels", (1, 8, 8))


def test_pixels_stand_channel_by_channel_and_row_by_row() -> None:
    module = ImageCNN("pixels", (2, 3, 4), channels=(1,), kernel_size=1, pooling=1).build(24)
    convolution = next(layer for layer in module if isinstance(layer, nn.Conv2d))
    nn.init.ones_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    x_BN = torch.arange(24.0)[None]
    found = x_BN
    for layer in module[:-1]:
        found = layer(found)
    # The two channels of a pixel lie 12 apart.
    assert torch.equal(found, x_BN[:, :12] + x_BN[:, 12:])


def test_the_maximum_of_each_square_is_kept() -> None:
    module = ImageCNN("pixels", (1, 4, 4), channels=(1,), kernel_size=1).build(16)
    convolution = next(layer for layer in module if isinstance(layer, nn.Conv2d))
    nn.init.ones_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    found = torch.arange(16.0)[None]
    for layer in module[:-1]:
        found = layer(found)
    assert found.tolist() == [[5.0, 7.0, 13.0, 15.0]]


def test_rows_do_not_depend_on_their_batch() -> None:
    module, x_BN = _digits().build(64).double().eval(), torch.randn(5, 64).double()
    whole_BI = module(x_BN)
    assert whole_BI.dtype == torch.float64
    for row in range(5):
        torch.testing.assert_close(
            module(x_BN[row : row + 1])[0], whole_BI[row], rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("num_rows", [0, 1, 7])
def test_gradients_are_finite_under_bfloat16_autocast(num_rows: int) -> None:
    module, x_BN = _digits().build(64), torch.randn(num_rows, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found_BI = module(x_BN)
    torch.testing.assert_close(found_BI.float(), module(x_BN), rtol=0.1, atol=0.1)
    found_BI.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_it_tells_digits_apart() -> None:
    images, labels = load_digits(return_X_y=True)
    x_BN, labels_B = torch.tensor(images / 16).float(), torch.tensor(labels)
    spec = ImageCNN("pixels", (1, 8, 8), channels=(8, 16))
    model = nn.Sequential(spec.build(64), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(80):
        rows_B = (torch.arange(64) + 64 * step) % 1200
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x_BN[rows_B]), labels_B[rows_B]).backward()
        optimizer.step()
    right = (model(x_BN[1200:]).argmax(dim=1) == labels_B[1200:]).double().mean()
    assert right > 0.75


def test_an_image_of_another_size_than_the_feature_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"'pixels' must make 65 numbers.*\(1, 8, 8\).* makes 64"):
        _digits().build(65)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"channels": (4, 4, 4, 4)}, r"shape must leave a pixel after 4 blocks"),
        ({"kernel_size": 2}, r"kernel_size must be odd\. Found 2"),
        ({"channels": ()}, r"channels"),
        ({"shape": (1, 0, 8)}, r"shape"),
        ({"shape": (8, 8)}, r"shape"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(SchemaError, match=text):
        ImageCNN(**({"feature": "pixels", "shape": (1, 8, 8)} | wrong))
