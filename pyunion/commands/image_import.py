"""`pyunion import`: an image becomes directories that can be mounted. Prints them as --lower takes them."""

from __future__ import annotations

import os
from argparse import Namespace
from contextlib import ExitStack

from pyunion.commands import counting, given
from pyunion.errors import ExitCode
from pyunion.layers.sources import open_image
from pyunion.layers.store import Store


@given.failures_told()
@given.ended_in_order()
def run(arguments: Namespace) -> int:
    path, tag = given.image_and_tag(arguments.image)
    with counting.objects() as tell, ExitStack() as stack:
        store = Store(os.fsencode(arguments.dest), tell)
        stack.enter_context(store.locked())
        image = open_image(path, tag, stack, store.path)
        layers = store.add(image, arguments.name or image.tag)
    print(given.lower_list(layers))
    return ExitCode.OK
