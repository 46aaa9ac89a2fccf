"""This project with ``handoff = "direct"``: the worker that commits a step runs the next one."""

import os

os.environ["PEERS_HANDOFF"] = "direct"

from peer_sequences import *  # noqa: F403
