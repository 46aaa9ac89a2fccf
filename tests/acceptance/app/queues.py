import os
from uuid import uuid4

# The queue of the steps that are performed by real workers: no other run of the tests, nor
# anything else that uses the server, has it. Worker processes inherit its name.
QUEUE = os.environ.setdefault("ACCEPTANCE_QUEUE", f"acceptance-{uuid4().hex[:12]}")
