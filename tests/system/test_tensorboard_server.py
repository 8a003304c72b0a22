"""A TensorBoard server on a work dir.

It is asked by HTTP for what its page asks, and opened in headless Chromium.
"""

import json
import urllib.parse
import urllib.request

import pytest
from support import browser, programs, recipes


@pytest.fixture(scope="module")
def server(ground, tmp_path_factory):
    """The address of a server on the work dir of a short run."""
    folder = tmp_path_factory.mktemp("tensorboard")
    recipe = recipes.recipe(ground, iterations=8)
    recipe["tensorboard"] = {"interval": 1, "image_interval": 4}
    programs.many(
        [{"name": "work", "recipe": recipe, "engine": str(programs.DS_CONFIGS / "fp32.json")}],
        folder,
        ranks=1,
    )
    port = programs.free_port()
    command = [
        "python",
        "-m",
        "tensorboard.main",
        "--logdir",
        folder / "work",
        "--host",
        "127.0.0.1",
        "--port",
        port,
    ]
    with programs.Program([*command, "--load_fast=false", "--reload_interval=1"]) as program:
        address = f"http://127.0.0.1:{port}"
        program.wait_until(lambda: "tf_logs" in str(ask(address, "/data/runs")))
        program.wait_until(lambda: len(shown(address, "scalars", "loss")) == 8)
        program.wait_until(lambda: len(shown(address, "images", "pictures_1")) == 2)
        yield address


def ask(address: str, route: str):
    try:
        with urllib.request.urlopen(address + route, timeout=120) as answer:
            return json.loads(answer.read())
    except OSError:
        return None


def shown(address: str, plugin: str, name: str) -> list:
    """Returns the points or images of the one tag that ends in a name.

    None where there is no such tag yet.
    """
    tags = ask(address, f"/data/plugin/{plugin}/tags") or {}
    found = [
        {"run": run, "tag": tag} for run in tags for tag in tags[run] if tag.split("/")[-1] == name
    ]
    if not found:
        return []
    (which,) = found
    query = urllib.parse.urlencode({**which, "sample": 0})
    return ask(address, f"/data/plugin/{plugin}/{plugin}?{query}") or []


def test_tensorboard_server_serves_loss_and_images(server):
    """A TensorBoard server on the work dir serves the loss and the images by HTTP."""
    points = shown(server, "scalars", "loss")
    assert [step for _, step, _ in points] == list(range(1, 9))
    assert all(0 < value < 10 for _, _, value in points)
    images = shown(server, "images", "pictures_1")
    assert [image["step"] for image in images] == [4, 8]
    with urllib.request.urlopen(
        f"{server}/data/plugin/images/individualImage?{images[0]['query']}"
    ) as answer:
        assert answer.read(8) == b"\x89PNG\r\n\x1a\n"


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no chromium on this machine")
def test_tensorboard_page_shows_loss_and_images(server, tmp_path):
    """A headless browser shows the loss and the images on TensorBoard's page."""
    # Two groups of cards are open at first, and the loss is in the third: the filter opens the
    # cards that are meant.
    address = f"{server}/?tagFilter=%5Etrain%2F(loss%7Cpictures_1)%24&smoothing=0#timeseries"
    wanted, page = ("tf_logs", ">/loss<", ">/pictures_1<", "<img"), ""
    for _ in range(5):  # the browser's virtual clock may run out before the server has answered
        page = browser.open_page(address, tmp_path / "profile", "--dump-dom")
        if all(word in page for word in wanted):
            break
    assert [word for word in wanted if word not in page] == []
    image = tmp_path / "page.png"
    for _ in range(5):
        browser.open_page(address, tmp_path / "profile", f"--screenshot={image}")
        if image.is_file():
            break
    assert image.read_bytes().startswith(b"\x89PNG")
