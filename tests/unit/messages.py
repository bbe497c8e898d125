"""A message as a producer sends it."""

import json

GOOD = {
    "event_id": "01a20b20-7007-7b5a-b044-fec6a3afb754",
    "observed_at": "2026-11-23T16:22:04.796005+00:00",
    "seconds": 1.000213,
    "episode_started_at": "2026-11-23T16:21:58.795911+00:00",
    "host": "web-1",
    "interfaces": ["eth0"],
    "bytes_sent_per_second": 812345.6,
    "bytes_received_per_second": 3120456.1,
    "bytes_per_second": 3932801.7,
    "limit_bytes_per_second": 1000000.0,
    "message": "Bandwidth exceeded on web-1: 3.93 MB/s is over the limit of 1.00 MB/s",
}


def good(**changed):
    """The message with some fields changed, as json.dumps() writes it. A field that is ... is left out."""
    return json.dumps({name: value for name, value in (GOOD | changed).items() if value is not ...}).encode()
