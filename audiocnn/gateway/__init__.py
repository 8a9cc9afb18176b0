"""REST and live streams in front of TorchServe, which it asks through `audiocnn.client.async_client`.

OpenBLAS uses one thread here. Its others are of no use beside those of the requests, and a fork
(`audiocnn.audio.isolation`) during a product that uses them never returns. It reads the variable when NumPy
is imported.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
