"""A traceback begins with the project's own frames; those of libraries are folded, none is lost."""

import traceback

import dramatiq

from sequences.inspection import tracebacks
from sequences.inspection.tracebacks import blocks_of

SITE = "/srv/venv/lib/python3.13/site-packages"


def frame(path, function, code="pass"):
    return f'  File "{path}", line 7, in {function}\n    {code}\n    ^^^^\n'


WORKER = frame(f"{SITE}/dramatiq/worker.py", "process") + frame(
    f"{SITE}/sequences/engine/executor.py", "execute"
)
OWN = frame("/srv/shop/orders.py", "charge", "self.gateway.charge()")
CLIENT = frame(f"{SITE}/requests/api.py", "post") + frame("/usr/lib/python3.13/ssl.py", "read")
START, END = "Traceback (most recent call last):\n", "shop.CardError: insufficient funds\n"


def shape(text):
    """What is shown of each block: its first words, and how many frames are folded."""
    return [(block.text.split("\n")[0].strip(), block.folded) for block in blocks_of(text)]


def test_own_frames_come_first_and_library_frames_are_folded():
    blocks = blocks_of(START + WORKER + OWN + CLIENT + END)
    assert [block.folded for block in blocks] == [0, 0, 2, 0, 2]
    assert blocks[0].text == START.strip()
    assert blocks[1].text == OWN.rstrip("\n")
    assert blocks[2].text == CLIENT.rstrip("\n")
    assert blocks[3].text == END.strip()
    assert blocks[4].text == WORKER.rstrip("\n"), "what led to them is the least of interest"


def test_every_line_is_there():
    text = START + WORKER + OWN + CLIENT + OWN + END
    lines = "\n".join(block.text for block in blocks_of(text)).split("\n")
    assert sorted(lines) == sorted(text.rstrip("\n").split("\n"))


def test_each_exception_of_a_chain_begins_with_its_own_frames():
    because = "\nDuring handling of the above exception, another exception occurred:\n\n"
    text = START + WORKER + OWN + END + because + START + OWN + CLIENT + END
    assert [folded for _, folded in shape(text)] == [0, 0, 2, 0, 2, 0]
    firsts = [first for first, _ in shape(text)]
    assert firsts.count(START.strip()) == 2


def test_without_an_own_frame_all_frames_are_folded_in_their_place():
    assert [folded for _, folded in shape(START + WORKER + END)] == [0, 2, 0]
    assert blocks_of("shop.WorkerLost: two\n") == [tracebacks.Block("shop.WorkerLost: two")]
    assert blocks_of("") == [tracebacks.Block("")]


def test_a_recursion_stays_with_its_frame():
    repeated = "  [Previous line repeated 996 more times]\n"
    blocks = blocks_of(START + OWN + repeated + END)
    assert [block.folded for block in blocks] == [0]
    blocks = blocks_of(START + OWN + WORKER + repeated + END)
    assert "996 more" in blocks[1].text


def test_real_tracebacks_are_understood():
    def charge():
        dramatiq.get_broker().get_actor("no such actor")

    try:
        charge()
    except Exception as error:
        text = "".join(traceback.format_exception(error))
    blocks = blocks_of(text)
    assert "in charge" in blocks[0].text
    assert "dramatiq" in blocks[1].text
    assert blocks[1].folded >= 1
    assert "ActorNotFound" in blocks[-1].text
    try:
        raise ExceptionGroup("two", [ValueError("one"), TypeError("other")])
    except ExceptionGroup as error:
        text = "".join(traceback.format_exception(error))
    shown = "\n".join(block.text for block in blocks_of(text))
    assert sorted(shown.split("\n")) == sorted(text.rstrip("\n").split("\n"))


def test_this_package_is_a_library_wherever_it_stands():
    assert tracebacks.is_library(tracebacks.__file__)
    assert tracebacks.is_library("/opt/checkout/sequences/engine/executor.py")
    assert not tracebacks.is_library("/srv/shop/sequences/orders.py")
    assert not tracebacks.is_library("/srv/shop/sequences.py")
