"""Parts of a network keep what they state: channels, strides, and features to match."""

import pytest
import torch
from torch import nn

from tiekd.errors import RecipeError
from tiekd.models import contract
from tiekd.models.network import Network, Prediction

IMAGE = torch.zeros(2, 3, 33, 50)
FINE, COARSE = torch.zeros(2, 8, 9, 13), torch.zeros(2, 16, 5, 7)


class Part(nn.Module):
    """Returns what it is told to, and states what it is told to."""

    def __init__(self, returned=(FINE, COARSE), **stated):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.returned = returned
        for name, value in stated.items():
            setattr(self, name, value)

    def forward(self, *_):
        return self.returned


STATED = {"channels": (8, 16), "strides": (4, 8)}


@pytest.mark.parametrize(
    "stated", [STATED, {"channels": [8, 8, 8], "strides": [4, 8, 8]}], ids=["two", "dilated"]
)
def test_check_encoder_accepts_features_fine_to_coarse(stated):
    """Channels and strides may be lists, and dilated stages keep a stride."""
    contract.check_encoder(Part(**stated), "network.encoder (mine.e)")


@pytest.mark.parametrize(
    ("encoder", "told"),
    [
        (lambda image: [image], "build made a function; it must be a torch.nn.Module"),
        (Part(strides=(4, 8)), "its attribute channels isn't there; it must be a tuple of whole"),
        (Part(channels=(8, 16)), "its attribute strides isn't there; it must be"),
        (Part(channels=8, strides=4), "its attribute channels is 8; it must be a tuple"),
        (Part(channels=(), strides=()), "its attribute channels is (); it must be"),
        (Part(channels=(8, 16), strides=(4, 0)), "its attribute strides is (4, 0); it must be"),
        (Part(channels=(8, 16.0), strides=(4, 8)), "its attribute channels is (8, 16.0); it must"),
        (
            Part(channels=(8, 16), strides=(4,)),
            "states 2 channels [8, 16] and 1 strides [4]; give one of each for each feature",
        ),
        (Part(channels=(8, 16), strides=(8, 4)), "states the strides [8, 4]; they must not decrea"),
    ],
)
def test_check_encoder_refuses_what_it_does_not_state(encoder, told):
    """An encoder without whole channels and strides is refused with its place in the recipe."""
    with pytest.raises(RecipeError) as error:
        contract.check_encoder(encoder, "network.encoder (mine.e)")
    assert str(error.value).startswith(f"network.encoder (mine.e): {told}")


@pytest.mark.parametrize(
    ("neck", "told"),
    [
        (3.0, "build made a float; it must be a torch.nn.Module"),
        (Part(), "its attribute channels isn't there"),
        (Part(channels=(8,)), r"states 1 channels \[8\] for 2 features of the encoder"),
    ],
)
def test_check_neck_refuses_what_it_does_not_state(neck, told):
    """A neck states as many channels as the encoder."""
    with pytest.raises(RecipeError, match=rf"^network.neck \(mine.n\): {told}"):
        contract.check_neck(neck, (8, 16), "network.neck (mine.n)")
    contract.check_neck(Part(channels=(4, 4)), (8, 16), "network.neck (mine.n)")


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (FINE, "returned (2, 8, 9, 13); it must be a list of 2 features, fine to coarse"),
        ({"fine": FINE}, "returned a dict; it must be a list of 2 features"),
        ([FINE], "returned 1 features; it states 2, at strides [4, 8]"),
        ([COARSE, FINE], "feature 0 is (2, 16, 5, 7); it must be (2, 8, 9, 13), for it states 8"),
        (
            [FINE, torch.zeros(2, 16, 4, 6)],
            "feature 1 is (2, 16, 4, 6); it must be (2, 16, 5, 7), for it states 16 channels at "
            "stride 8 of an image of 33x50 (sizes are rounded up)",
        ),
        ([FINE, None], "feature 1 is a NoneType; it must be (2, 16, 5, 7)"),
        ([FINE, torch.zeros(2, 12, 5, 7)], "feature 1 is (2, 12, 5, 7); it must be (2, 16, 5, 7)"),
        ([FINE[:1], COARSE], "feature 0 is (1, 8, 9, 13); it must be (2, 8, 9, 13)"),
    ],
)
@pytest.mark.parametrize("kind", ["encoder", "neck"])
def test_network_refuses_features_that_are_not_as_stated(kind, returned, told):
    """Features of another number, size or width are refused; level and sizes are named."""
    encoder, neck = Part(**STATED), Part(channels=(8, 16))
    (encoder if kind == "encoder" else neck).returned = returned
    network = Network(encoder, Part(), Part(), 1e-3, 10.0, neck=neck)
    with pytest.raises(RecipeError) as error:
        network.features(IMAGE)
    assert str(error.value).startswith(f"{kind} ({__name__}.Part): {told}")


def test_network_checks_features_once(monkeypatch):
    """Only the first images' features are checked."""
    checked = []
    monkeypatch.setattr(
        "tiekd.models.network.check_features", lambda _, kind, *__: checked.append(kind)
    )
    head = Part(Prediction(torch.zeros(2, 1, 33, 50)))
    network = Network(Part(**STATED), Part(), head, 1e-3, 10.0, neck=Part(channels=(8, 16)))
    for _ in range(3):
        network(IMAGE)
    assert checked == ["encoder", "neck"]


@pytest.mark.parametrize(
    ("decoder", "told"),
    [
        (lambda features, size: features, "build made a function; it must be a torch.nn.Module"),
        (Part(stride=2), "its attribute channels isn't there; it must be a whole number from 1"),
        (Part(channels=(8,), stride=2), "its attribute channels is (8,); it must be a whole"),
        (Part(channels=8, stride=0), "its attribute stride is 0; it must be a whole number"),
        (Part(channels=8), "its attribute stride isn't there"),
    ],
)
def test_check_decoder_refuses_what_it_does_not_state(decoder, told):
    """A decoder without a number of channels and a stride is refused, and a head that's none."""
    with pytest.raises(RecipeError) as error:
        contract.check_decoder(decoder, "network.decoder (mine.d)")
    assert str(error.value).startswith(f"network.decoder (mine.d): {told}")
    contract.check_decoder(Part(channels=8, stride=2), "network.decoder (mine.d)")
    with pytest.raises(RecipeError, match=r"^network.head \(mine.h\): build made a function"):
        contract.check_head(lambda *_: None, "network.head (mine.h)")


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ([FINE], "returned a list; it must be (2, 8, h, w), for it states 8 channels"),
        (COARSE, "returned (2, 16, 5, 7); it must be (2, 8, h, w)"),
        (FINE[:1], "returned (1, 8, 9, 13); it must be (2, 8, h, w)"),
        (FINE[0], "returned (8, 9, 13); it must be (2, 8, h, w)"),
    ],
)
def test_network_refuses_a_decoder_that_is_not_as_stated(returned, told):
    """A feature map of another number of channels is refused before the head gets it."""
    network = Network(Part(**STATED), Part(returned, channels=8, stride=4), Part(), 1e-3, 10.0)
    with pytest.raises(RecipeError) as error:
        network.features(IMAGE)
    assert str(error.value).startswith(f"decoder ({__name__}.Part): {told}")


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (FINE, "returned (2, 8, 9, 13); it must be a tiekd.Prediction"),
        (Prediction(FINE), "returned a depth (2, 8, 9, 13); it must be (2, 1, h, w), floating"),
        (Prediction(FINE[:, 0]), "returned a depth (2, 9, 13); it must be (2, 1, h, w)"),
        (Prediction(FINE[:1, :1]), "returned a depth (1, 1, 9, 13); it must be (2, 1, h, w)"),
        (Prediction(FINE[:, :1].long()), "returned a depth (2, 1, 9, 13); it must be (2, 1, h"),
        (Prediction(None), "returned a depth a NoneType; it must be"),
    ],
)
def test_network_refuses_a_head_without_depth(returned, told):
    """A head that gives no depth, or several for a pixel, is refused at the first images."""
    decoder = Part(FINE, channels=8, stride=4)
    network = Network(Part(**STATED), decoder, Part(returned), 1e-3, 10.0)
    with pytest.raises(RecipeError) as error:
        network(IMAGE)
    assert str(error.value).startswith(f"head ({__name__}.Part): {told}")
    # Only the first images' prediction is checked.
    network.head.returned = Prediction(FINE[:, :1])
    network(IMAGE)
    network.head.returned = Prediction(FINE)
    network(IMAGE)
