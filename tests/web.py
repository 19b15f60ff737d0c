"""Single requests over HTTP, as httpx has them; but the certificates of the world's authorities are read once, not for each."""

from functools import partial
from typing import Final

import httpx

_CONTEXT: Final = httpx.create_ssl_context()

request = partial(httpx.request, verify=_CONTEXT)
get = partial(httpx.get, verify=_CONTEXT)
put = partial(httpx.put, verify=_CONTEXT)
post = partial(httpx.post, verify=_CONTEXT)
delete = partial(httpx.delete, verify=_CONTEXT)
