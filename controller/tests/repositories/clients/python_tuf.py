"""python-tuf as a client: METADATA_DIR METADATA_URL TARGET_DIR TARGET_URL ROOT TARGET...

With TUF_CA and TUF_TOKEN in the environment it believes that authority and shows that token.
"""

import os
import ssl
import sys
import urllib.error
import urllib.request

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater


class Shown(FetcherInterface):
    """Fetches over TLS from a pinned authority, with a bearer token."""

    def __init__(self, authority, token):
        self.context = ssl.create_default_context(cafile=authority)
        self.token = token

    def _fetch(self, url):
        request = urllib.request.Request(url, headers={"authorization": f"Bearer {self.token}"})
        try:
            answer = urllib.request.urlopen(request, timeout=20, context=self.context)
        except urllib.error.HTTPError as error:
            raise DownloadHTTPError(str(error), error.code) from error
        with answer:
            while chunk := answer.read(65536):
                yield chunk


metadata_dir, metadata_url, target_dir, target_url, root, *targets = sys.argv[1:]
with open(root, "rb") as file:
    first = file.read()
authority = os.environ.get("TUF_CA")
fetcher = Shown(authority, os.environ["TUF_TOKEN"]) if authority else None
updater = Updater(metadata_dir, metadata_url, target_dir, target_url, fetcher=fetcher, bootstrap=first)
updater.refresh()
for target in targets:
    info = updater.get_targetinfo(target)
    if info is None:
        sys.exit(f"{target} is not listed")
    updater.download_target(info)
